"""The engines: ddp, fsdp and deepspeed, behind one small protocol (engine.py)."""

from __future__ import annotations

import torch

from trainer import zero
from trainer.engines.engine import Engine
from trainer.layout import BatchLayout
from trainer.runtime import Runtime
from trainer.schema import Ddp, Deepspeed, Fsdp, TrainConfig


def make_engine(config: TrainConfig, layout: BatchLayout, model: torch.nn.Module, runtime: Runtime) -> Engine:
    match config.engine:
        case Ddp():
            from trainer.engines.ddp import DdpEngine

            return DdpEngine(config, model, runtime)
        case Fsdp():
            from trainer.engines.fsdp import FsdpEngine

            return FsdpEngine(config, config.engine, model, runtime)
        case Deepspeed():
            from trainer.engines.deepspeed import DeepspeedEngine

            hidden_size = model.config.get_text_config().hidden_size  # type: ignore[operator, union-attr]
            return DeepspeedEngine(config, zero.complete(config, layout, hidden_size), model, runtime)
