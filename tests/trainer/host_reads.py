"""The trainer, counting what a step reads from the device to the host: `python -m tests.trainer.host_reads CONFIG`."""

from __future__ import annotations

import runpy
import sys
import traceback
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from trainer.run import Training


class Reads(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.where: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # int32: DDP's own map of the parameters that were used, which lies on the host.
        if function is torch.ops.aten._local_scalar_dense.default and args[0].dtype != torch.int32:
            self.where.append(str(traceback.extract_stack()[-4:]))
        return function(*args, **(kwargs or {}))


def count() -> None:
    step = Training.step

    def counted(self: Training, *args: Any) -> None:
        with Reads() as reads:
            step(self, *args)
        self.attempt.tell("reads", self.progress.step, where=reads.where)

    Training.step = counted  # type: ignore[method-assign]


if __name__ == "__main__":
    count()
    sys.argv[:] = ["trainer", sys.argv[1]]
    runpy.run_module("trainer", run_name="__main__", alter_sys=True)
