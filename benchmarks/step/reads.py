"""How often the host reads a tensor in a step of Outlast: `python -m benchmarks.step.reads RUN_DIR/config.yaml`.

On an accelerator each reading waits for all that was queued before. Printed are the places, as JSON.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from collections import Counter
from pathlib import Path
from typing import Any

BEFORE, COUNTED = 3, 5
"""Steps."""


def main(config: str) -> None:
    from trainer.stop import signals

    signals.install()  # its first act, before torch is imported here
    count()
    sys.argv = ["trainer", config]
    runpy.run_module("trainer", run_name="__main__", alter_sys=True)


def count() -> None:
    """Some steps of the real loop, all between two calls of `step` included; then the process prints and leaves."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    from trainer.run import Training

    found: Counter[str] = Counter()

    class Reads(TorchDispatchMode):
        def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if operator is torch.ops.aten._local_scalar_dense.default:
                found[_place()] += 1
            return operator(*args, **(kwargs or {}))

    step, mode = Training.step, Reads()

    def counted(training: Training, batch: Any, agreement: Any) -> None:
        match training.progress.step - BEFORE:
            case 0:
                mode.__enter__()
            case done if done == COUNTED:
                mode.__exit__(None, None, None)
                print(json.dumps({place: number / COUNTED for place, number in found.items()}), flush=True)
                os._exit(0)
        step(training, batch, agreement)

    Training.step = counted  # type: ignore[method-assign]


def _place() -> str:
    """The innermost function that is running besides torch's own."""
    import torch

    within = (__file__, str(Path(torch.__file__).parent))
    frame = sys._getframe(1)
    while frame.f_back and frame.f_code.co_filename.startswith(within):
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}: {frame.f_code.co_name}"


if __name__ == "__main__":
    main(sys.argv[1])
