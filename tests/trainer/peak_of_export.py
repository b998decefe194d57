"""Exports a checkpoint, and tells how far this process's memory grew at its peak, in bytes.

python -m tests.trainer.peak_of_export FOLDER JSON

JSON: the config of a new model, of which only FOLDER/checkpoints/ holds the weights. What is imported on the way counts
as imported: a small model of the kind is exported before.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from tests.trainer import checkpoints
from trainer.checkpoint.lineage import checkpoint_after
from trainer.export import export
from trainer.model.weights import build


def memory(field: str) -> int:
    """Of this process, in bytes: VmRSS now, VmHWM at its peak since `forget_the_peak`."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return 1024 * int(found[1])


def forget_the_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def main(folder: Path, model: dict[str, Any]) -> None:
    small = {**model, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 512}
    for name, shape in (("small", small), ("large", model)):
        (folder / name).mkdir(exist_ok=True)
        settings = checkpoints.settings(
            folder / name, {"config": shape}, data={"train": ["a"], "seq_len": 8, "format": "chat"}
        )
        if name == "small":
            checkpoints.write_checkpoint(folder / name, dict(build(settings.model, 0).named_parameters()))
        checkpoint = checkpoint_after(folder / name, None)
        forget_the_peak()
        before = memory("VmRSS")
        export(settings, checkpoint, folder / name / "export", print)
    print(f"grew by {memory('VmHWM') - before}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
