"""What one rank holds of one parameter: the one form in which engines, optimizers and checkpoints speak of state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.engines.deepspeed.swapped import Swapped
from trainer.engines.eight_bit import Kept

KINDS = ("weights", "exp_avg", "exp_avg_sq")
"""What a checkpoint keeps of every parameter: the weights that the optimizer steps on, and AdamW's two moments."""


Flat = Kept | Swapped
"""Flat values as they lie in memory or on a disk: a slice of them is a tensor, and `copy_` sets them all."""


@dataclass(frozen=True)
class Shard:
    """The flat range [start, stop) of a parameter that this rank holds, as views that may be written to."""

    name: str
    shape: tuple[int, ...]
    """Of the whole parameter."""
    start: int
    stop: int
    tensors: Mapping[str, Flat]
    """By kind; each (stop - start,), in fp32, or what the precision recipe keeps."""
    step: Tensor
    """AdamW's count of this parameter's steps, a scalar."""

    def part(self, index: int, count: int) -> tuple[int, int]:
        """The sub-range that one of `count` holders of the same shard writes."""
        size = self.stop - self.start
        return self.start + size * index // count, self.start + size * (index + 1) // count


def checksum(values: Tensor) -> Tensor:
    """Sum of the values' bits as integers, modulo 2**32: a scalar, where they lie."""
    return values.view(torch.int32 if values.itemsize == 4 else torch.int16).sum(dtype=torch.int32)
