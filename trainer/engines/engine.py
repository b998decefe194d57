"""How weights, gradients and moments lie on the ranks. The loop and the checkpoints see only this."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

from trainer.data.batches import MicroBatch
from trainer.engines import module_of
from trainer.engines.optimizer import Optimizer
from trainer.engines.shard import Shard
from trainer.engines.stopwatch import Stopwatch
from trainer.layout import BatchLayout
from trainer.runtime import Runtime
from trainer.schema import TrainConfig


class Engine(Protocol):
    module: torch.nn.Module
    replicas: tuple[int, int]
    """This rank's index among the ranks that hold the same shards, and their number: they share the writing."""

    optimizer: Optimizer
    stopwatch: Stopwatch
    """Of this rank's own computing."""

    def loss(self, batch: MicroBatch) -> Tensor:
        """Sum of the cross-entropy over a micro batch's valid targets, in the run's precision. Collective."""

    def backward(self, batch: MicroBatch, valid_tokens: int, last: bool) -> Tensor:
        """Forward and backward of a micro batch: adds its gradient of loss_sum / valid_tokens (of the global batch).

        Gradients are summed over the ranks at the `last` micro batch of a step. Returns the loss sum, detached.
        """

    def step(self, lr: float, number: int) -> Tensor:
        """Clip the global gradient, step, drop the gradients. Returns the norm before clipping, a scalar. Where that is
        not finite nothing steps. `number`: of the step, from 1."""

    def shards(self) -> Iterator[Shard]:
        """What this rank holds, in the order of the parameters."""

    def refresh(self) -> None:
        """After the shards were written to: what follows from them. Collective."""

    def close(self) -> None:
        """What this rank keeps on a disk is gone, and nothing steps any more."""


class SteppedByOurs:
    """The half of an engine whose shards our optimizer steps on as they lie: nothing follows from them, and nothing of
    them is kept elsewhere."""

    optimizer: Optimizer

    def step(self, lr: float, number: int) -> Tensor:
        return self.optimizer.step(lr, number)

    def shards(self) -> Iterator[Shard]:
        return self.optimizer.shards()

    def refresh(self) -> None:
        return None

    def close(self) -> None:
        return None


def make_engine(config: TrainConfig, layout: BatchLayout, model: torch.nn.Module, runtime: Runtime) -> Engine:
    engine: Engine = module_of(config.engine, "engine").build(config, layout, model, runtime)
    return engine


@contextmanager
def forward_only(module: torch.nn.Module) -> Iterator[None]:
    """Nothing is dropped out, and nothing kept for a backward pass."""
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train()


@contextmanager
def without_dropout(module: torch.nn.Module) -> Iterator[None]:
    """Nothing is dropped out, and there is a backward pass: layers that are to be computed again for it still are."""
    module.eval()
    for part in module.modules():
        part.training = bool(getattr(part, "gradient_checkpointing", False))
    try:
        yield
    finally:
        module.train()
