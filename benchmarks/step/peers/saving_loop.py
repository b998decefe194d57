"""The bare loop, saving every `save_every` steps by what torch has for it: `python saving_loop.py FOLDER`.

`how`: torch.save, dcp.save, dcp.async_save, or dcp.async_save with a stager that is kept, so that the memory that it
copies to is there already. DCP syncs its files itself, though no folder; torch.save does not, and is measured without.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import bare_loop
import common
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions


class Saves:
    def __init__(self, folder: Path, every: int, how: str) -> None:
        self.folder, self.every = folder / "saved", every
        saves: dict[str, Callable[..., None]] = {
            "torch.save": self.torch_save,
            "dcp.save": self.dcp_save,
            "dcp.async_save": self.dcp_async_save,
            "dcp.async_save, stager kept": self.dcp_async_save,
        }
        self.save = saves[how]
        self.stager = DefaultStager(StagingOptions(False, False, False, False)) if how.endswith("kept") else None
        self.running: Any = None

    def __call__(self, gate: common.Gate, step: int, model: Any, adamw: Any) -> None:
        if step % self.every == self.every - 1:  # the first step after a pause, which is not counted
            for old in self.folder.glob("*"):
                shutil.rmtree(old)
        if step % self.every == 0:
            target = self.folder / str(step)
            target.mkdir(parents=True)
            began = perf_counter()
            self.save(gate, {"model": model.state_dict(), "optimizer": adamw.state_dict()}, target, began)

    def torch_save(self, gate: common.Gate, state: Any, target: Path, began: float) -> None:
        torch.save(state, target / "state.pt")
        gate.values["fsync"] = common.fsync(target)
        gate.values["durable"] = perf_counter() - began

    def dcp_save(self, gate: common.Gate, state: Any, target: Path, began: float) -> None:
        dcp.save(state, checkpoint_id=target)
        gate.values["durable"] = perf_counter() - began

    def dcp_async_save(self, gate: common.Gate, state: Any, target: Path, began: float) -> None:
        if self.running is not None:
            self.running.result()

        def durable(_: Any) -> None:
            gate.values["durable"] = perf_counter() - began  # told with the step that runs then

        self.running = dcp.async_save(state, checkpoint_id=target, async_stager=self.stager)
        self.running.add_done_callback(durable)


def main(folder: Path) -> None:
    options = common.settings(folder)
    bare_loop.main(folder, Saves(folder, options["save_every"], options["how"]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
