"""The engines: ddp and fsdp, behind one small protocol (engine.py)."""

from __future__ import annotations

import torch

from trainer.config import Ddp, Fsdp, TrainConfig
from trainer.engines.engine import Engine
from trainer.runtime import Runtime


def make_engine(config: TrainConfig, model: torch.nn.Module, runtime: Runtime) -> Engine:
    match config.engine:
        case Ddp():
            from trainer.engines.ddp import DdpEngine

            return DdpEngine(config, model, runtime)
        case Fsdp():
            from trainer.engines.fsdp import FsdpEngine

            return FsdpEngine(config, config.engine, model, runtime)
