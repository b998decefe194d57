"""The trainer with a loss that is not a number: `python -m tests.trainer.with_a_nan RANK FIRST COUNT CONFIG`.

On rank RANK the losses of the attempt's FIRST-th and following COUNT micro batches are. At the end ranks that hold the
same weights compare them to the bit.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import runpy
import sys

from torch import Tensor

from trainer.data.batches import MicroBatch
from trainer.model.loss import LossModel
from trainer.run import Training


def arm(first: int, count: int) -> None:
    forward, calls = LossModel.forward, itertools.count(1)

    def broken(self: LossModel, batch: MicroBatch) -> Tensor:
        total = forward(self, batch)
        return total * float("nan") if self.training and first <= next(calls) < first + count else total

    LossModel.forward = broken  # type: ignore[method-assign]


def compare_at_the_end() -> None:
    end = Training.end

    def compared(self: Training) -> int:
        if self.engine.replicas[1] > 1:
            digest = hashlib.sha256()
            for shard in self.engine.shards():
                digest.update(shard.tensors["weights"][:].float().numpy().data)
            digests = self.runtime.gather(digest.hexdigest())
            assert len(set(digests)) == 1, digests
        return end(self)

    Training.end = compared  # type: ignore[method-assign]


if __name__ == "__main__":
    rank, first, count, config = sys.argv[1:]
    compare_at_the_end()
    if os.environ["RANK"] == rank:
        arm(int(first), int(count))
    sys.argv[:] = ["trainer", config]
    runpy.run_module("trainer", run_name="__main__", alter_sys=True)
