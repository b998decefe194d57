"""The trainer with a fault at a known point: `python -m tests.trainer.with_a_fault POINT RANK FAULT CONFIG`.

The fault comes on rank RANK (or `all`) when the point is reached as often as POINTS says, and says so by the file
`reached` beside the config. `wait`: the rank stays there until the file `go` is there. `hold`: it stays there without end
and without letting go of the interpreter. `oom`: it asks for more memory than there is. `eio`: an error of the disk.
`bug`: an error of our own. A number: every call from then on takes so many seconds longer.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
import pkgutil
import runpy
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from trainer.stop import watchdog

POINTS = {
    "interpreter": ("", 1),
    "group": ("torch.distributed:init_process_group", 1),
    "preparation": ("trainer.data.prepare:_write_rows", 2),  # one chunk is done
    "model": ("trainer.run:hollow", 1),
    "load": ("trainer.run:load_newest", 1),
    "first step": ("trainer.engines.optimizer:Optimizer.step", 1),
    "step": ("trainer.engines.optimizer:Optimizer.step", 6),
    "attention": ("trainer.model.attention:scaled_dot_product_attention", 1),
    "evaluation": ("trainer.evaluation:Feed", 1),
    "data": ("trainer.data.batches:_read", 4),
    "save": ("trainer.checkpoint.writers:write_file", 1),
    "durable": ("trainer.checkpoint.format:HashingFile.sync", 1),
    "export": ("trainer.run:export", 1),
}


def fault(kind: str, folder: Path) -> None:
    (folder / "reached").touch()
    if kind == "hold":
        ctypes.PyDLL(None).sleep(1000)
    elif kind == "oom":
        torch.empty(10**15, dtype=torch.uint8)
    elif kind == "eio":
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    elif kind == "bug":
        raise ZeroDivisionError("a bug")
    elif kind == "wait":
        while not (folder / "go").exists():
            time.sleep(0.01)
    else:
        time.sleep(float(kind))


def arm(point: str, kind: str, folder: Path) -> None:
    where, count = POINTS[point]
    if not where:
        return fault(kind, folder)
    owner_name, _, name = where.rpartition("." if "." in where.split(":")[1] else ":")
    owner = pkgutil.resolve_name(owner_name)
    original: Callable[..., Any] = getattr(owner, name)
    calls = itertools.count(1)

    def with_fault(*args: Any, **kwargs: Any) -> Any:
        call = next(calls)
        if call == count or call > count and kind not in ("wait", "hold", "eio"):
            fault(kind, folder)
        return original(*args, **kwargs)

    setattr(owner, name, with_fault)


if __name__ == "__main__":
    point, rank, kind, config = sys.argv[1:]
    if rank in ("all", os.environ["RANK"]):
        watchdog.LAST_RESORT = 5.0  # seconds, on the rank that holds the interpreter
        arm(point, kind, Path(config).parent)
    sys.argv[:] = ["trainer", config]
    runpy.run_module("trainer", run_name="__main__", alter_sys=True)
