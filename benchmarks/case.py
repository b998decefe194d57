"""What a step is measured of: a model, its batch, and the settings that take memory or time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from trainer.engines.ddp.settings import Ddp
from trainer.schema import Optim, Train, TrainConfig
from trainer.shape import Model
from trainer.sources import Data

LR = 1e-5


@dataclass(frozen=True)
class Case:
    size: str
    """The model's name in a table of shapes."""
    tokens: int
    """Of a sequence."""
    micro: int
    """Sequences in one forward pass."""
    accumulation: int = 1
    precision: Any = "master32"
    recompute: Any = False
    """train.gradient_checkpointing"""
    engine: Any = field(default_factory=Ddp)
    optimizer: Any = "adamw"

    def trained(self, model: Model, ranks: int = 1) -> TrainConfig:
        return TrainConfig(
            name="benchmark",
            model=model,
            data=Data(train=[], seq_len=self.tokens),
            train=Train(
                global_batch_size=self.micro * self.accumulation * ranks,
                micro_batch_size=self.micro,
                steps=1,
                precision=self.precision,
                gradient_checkpointing=self.recompute,
            ),
            optim=Optim(lr=LR, name=self.optimizer),
            engine=self.engine,
        )
