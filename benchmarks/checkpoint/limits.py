"""What no checkpoint can beat, behind the gate: `python -m benchmarks.checkpoint.limits FOLDER`.

With `bytes` in its settings: every `save_every` steps a copy of so many bytes in memory, and their write and fsync.
With `read`: at each step this rank's share of the files in that folder, into memory that is there already.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.step.peers.common import Gate, settings


def main(folder: Path) -> None:
    options, gate = settings(folder), Gate()
    if "read" in options:
        read(gate, sorted(Path(options["read"]).glob("*.safetensors")))
    else:
        copy_and_write(gate, options, folder / "raw")


def copy_and_write(gate: Gate, options: dict[str, Any], target: Path) -> None:
    import torch

    source, copy = (torch.randint(256, (options["bytes"],), dtype=torch.uint8) for _ in range(2))
    for step in count(1):
        gate.step()
        if step % options["save_every"]:
            target.unlink(missing_ok=True)
            continue
        began = perf_counter()
        copy.copy_(source)
        gate.values["memcpy"] = perf_counter() - began
        began = perf_counter()
        with open(target, "xb", buffering=0) as file:
            left = memoryview(source.numpy())
            while left:
                left = left[file.write(left) :]
            os.fsync(file.fileno())
        gate.values["durable"] = perf_counter() - began


def read(gate: Gate, files: Sequence[Path]) -> None:
    own = files[int(os.environ["RANK"]) :: int(os.environ["WORLD_SIZE"])]
    buffers = [memoryview(bytearray(path.stat().st_size)) for path in own]
    while True:
        gate.step()
        began = perf_counter()
        for path, buffer in zip(own, buffers, strict=True):
            with open(path, "rb", buffering=0) as file:
                while buffer:
                    buffer = buffer[file.readinto(buffer) :]
        gate.values["read"] = perf_counter() - began


if __name__ == "__main__":
    main(Path(sys.argv[1]))
