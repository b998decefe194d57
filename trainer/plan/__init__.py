"""Arithmetic before the first step, torch-free: how a global batch is divided, and how many steps a run has."""

from __future__ import annotations

import math
from collections.abc import Mapping

from settings import ConfigError
from trainer.layout import BatchLayout
from trainer.schema import Stage, Train


def batch_layout(train: Train, world_size: int) -> BatchLayout:
    """How `world_size` ranks share a global batch. Raises ConfigError with the equation when it does not divide."""
    total = train.global_batch_size
    share, rest = divmod(total, world_size)
    if rest:
        near = next(n for n in range(min(world_size, total), 0, -1) if total % n == 0)
        more = math.ceil(total / world_size) * world_size
        raise ConfigError(
            f"train.global_batch_size={total} does not divide by {world_size} ranks ({total} / {world_size} = "
            f"{total / world_size:.2f}): take {near} ranks, or train.global_batch_size={more}"
        )
    micro = train.micro_batch_size or next(m for m in range(min(8, share), 0, -1) if share % m == 0)
    if share % micro:
        near = max(m for m in range(1, min(micro, share) + 1) if share % m == 0)
        raise ConfigError(
            f"train.micro_batch_size={micro} does not divide a rank's share of {share} sequences "
            f"({total} / {world_size} ranks): take train.micro_batch_size={near}"
        )
    return BatchLayout(micro, share // micro, world_size)


def total_steps(train: Train, sequences: int) -> int:
    """Optimizer steps of the run over `sequences` packed sequences. Raises ConfigError when not one batch is there."""
    if train.steps is not None:
        return train.steps
    assert train.epochs is not None  # resolve() asks for one of the two
    steps = int(sequences * train.epochs) // train.global_batch_size
    if steps < 1:
        raise ConfigError(
            f"the data holds {sequences} sequences, less than one batch of train.global_batch_size="
            f"{train.global_batch_size}: give more data or a smaller batch"
        )
    return steps


def stage_steps(stage: Stage, batch: int, seq_len: int, sizes: Mapping[str, int]) -> int:
    """Optimizer steps of a stage; 0: it is less than one batch. `sizes`: sequences of each source; where the one of its
    largest weight is not among them, all of them are taken for it."""
    if stage.steps is not None:
        return stage.steps
    if stage.tokens is not None:
        return int(stage.tokens) // (batch * seq_len)
    assert stage.epochs is not None  # resolve() asks for one of the three
    sequences, weights = float(sum(sizes.values())), stage.weights
    if weights:
        largest = max(sorted(weights), key=lambda name: weights[name][0])
        sequences = sizes.get(largest, sequences) * sum(weight for weight, _ in weights.values()) / weights[largest][0]
    return int(sequences * stage.epochs) // batch
