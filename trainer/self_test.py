"""Before the first step after a resume: this rank holds what it has read, and can compute with it.

The blocks of the file were checked where they were read. What goes wrong after that is no fault of the checkpoint, but
of a node's memory or of a GPU, and would be trained on and saved.
"""

from __future__ import annotations

import math
import os
from typing import Any

import xxhash
from torch import Tensor

from trainer.data.batches import MicroBatch
from trainer.engines.engine import Engine, forward_only
from trainer.engines.shard import checksum
from trainer.runtime import Runtime


class Unfit(Exception):
    """A rank failed; the message names it and its host."""


def check(runtime: Runtime, engine: Engine, read: list[int], batch: MicroBatch | None) -> None:
    """Collective. `read`: the checksums of the weights, as they were read, in the order of the shards. `batch`: for one
    forward pass. Raises Unfit, on every rank alike."""
    loss = _loss(engine, batch.to(runtime.device)) if batch is not None else 0.0  # every rank takes part
    shards = list(engine.shards())
    kept = [shard.tensors["weights"] for shard in shards]
    held = [int(checksum(values)) if isinstance(values, Tensor) else None for values in kept]  # None: on a disk
    problem: str | None = None
    if any(here not in (None, sum) for here, sum in zip(held, read, strict=True)):
        problem = "does not hold the weights that it has read"
    elif not math.isfinite(loss):
        problem = f"computes a loss of {loss} from them"
    what = _digest([(shard.name, shard.start, shard.stop) for shard in shards])
    first: dict[bytes, bytes] = {}
    said = runtime.gather((problem, os.uname().nodename, what, _digest(held)))
    for rank, (problem, host, what, sums) in enumerate(said):
        if problem is None and first.setdefault(what, sums) != sums:
            problem = "holds other weights than a rank that should hold the same"
        if problem is not None:
            raise Unfit(f"rank {rank} on {host} {problem}: its memory or GPU may be broken, the checkpoint is whole")


def _digest(values: list[Any]) -> bytes:
    return xxhash.xxh3_128_digest(repr(values).encode())


def _loss(engine: Engine, batch: MicroBatch) -> float:
    with forward_only(engine.module):
        return float(engine.loss(batch))
