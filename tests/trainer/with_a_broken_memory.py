"""The trainer, of which rank 1 loads something else than it reads: `python -m tests.trainer.with_a_broken_memory FAULT
CONFIG`. `bit`: one bit of a weight flips after it was read; `replica`: before; `nan`: the forward pass gives none."""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Iterable
from typing import Any

import torch

from trainer import run, self_test
from trainer.checkpoint.load import Reader
from trainer.engines.shard import Shard


def flip(shards: Iterable[Shard]) -> None:
    next(iter(shards)).tensors["weights"][:1].view(torch.int32).bitwise_xor_(1)  # type: ignore[union-attr]


def break_memory(fault: str) -> None:
    load, read, loss = run.load_newest, Reader.read_into, self_test._loss

    def load_and_flip(runtime: Any, shards: Any, *more: Any) -> Any:
        found = load(runtime, shards, *more)
        flip(shards())
        return found

    def read_and_flip(reader: Reader, out: Any, *more: Any) -> None:
        read(reader, out, *more)
        out.view("int32")[0] ^= 1

    if fault == "bit":
        run.load_newest = load_and_flip
    elif fault == "replica":
        Reader.read_into = read_and_flip  # type: ignore[method-assign]
    else:
        self_test._loss = lambda *given: loss(*given) * float("nan")


if __name__ == "__main__":
    fault, config = sys.argv[1:]
    if os.environ["RANK"] == "1":
        break_memory(fault)
    sys.argv[:] = ["trainer", config]
    runpy.run_module("trainer", run_name="__main__", alter_sys=True)
