"""Weights, gradients and moments sharded over all ranks by torch's fully_shard, one layer a unit."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, fully_shard

from settings import ConfigError
from trainer.data.batches import MicroBatch
from trainer.engines.engine import SteppedByOurs
from trainer.engines.fsdp.settings import Fsdp
from trainer.engines.optimizer import Optimizer
from trainer.engines.stopwatch import Stopwatch
from trainer.layout import BatchLayout
from trainer.model.loss import LossModel
from trainer.model.model import materialize
from trainer.runtime import Runtime
from trainer.schema import TrainConfig


def build(config: TrainConfig, layout: BatchLayout, model: torch.nn.Module, runtime: Runtime) -> FsdpEngine:
    assert isinstance(config.engine, Fsdp)
    return FsdpEngine(config, config.engine, model, runtime)


class FsdpEngine(SteppedByOurs):
    def __init__(self, config: TrainConfig, engine: Fsdp, model: torch.nn.Module, runtime: Runtime) -> None:
        self._runtime, self._reduce_each = runtime, engine.reduce_each
        self.stopwatch = Stopwatch(model, runtime.device)
        mesh, self.replicas = _mesh(engine, runtime)
        bf16 = config.train.bf16_passes
        shard: Any = {
            "mesh": mesh,
            "mp_policy": MixedPrecisionPolicy(torch.bfloat16, torch.float32) if bf16 else MixedPrecisionPolicy(),
        }
        if engine.offload:
            shard["offload_policy"] = CPUOffloadPolicy(pin_memory=runtime.device.type != "cpu")
        # From the CPU: fully_shard moves a unit at a time, so that no GPU ever holds the whole model.
        layers = set(engine.layers or getattr(model, "_no_split_modules", None) or ())
        if missing := set(engine.layers) - {type(module).__name__ for module in model.modules()}:
            raise ConfigError(
                f"engine.layers: the model has no {min(missing)}: leave it out, or name its layers' class"
            )
        for module in list(model.modules()):
            if type(module).__name__ in layers:
                fully_shard(module, reshard_after_forward=engine.reshard, **shard)
        # The root takes what is left, also both ends of a tied embedding, which must lie in one unit.
        self.module: torch.nn.Module = LossModel(model)
        fully_shard(self.module, **shard)
        materialize(model, torch.device("cpu") if engine.offload else runtime.device)
        self.optimizer = Optimizer(model, config)

    def loss(self, batch: MicroBatch) -> Tensor:
        return cast(Tensor, self.module(batch))

    def backward(self, batch: MicroBatch, valid_tokens: int, last: bool) -> Tensor:
        cast(FSDPModule, self.module).set_requires_gradient_sync(last or self._reduce_each)
        loss = self.loss(batch)
        # The ranks' gradients are averaged: times their number makes it the sum.
        (loss * (self._runtime.world_size / max(1, valid_tokens))).backward()
        return loss.detach()


def _mesh(engine: Fsdp, runtime: Runtime) -> tuple[DeviceMesh, tuple[int, int]]:
    """Who shards among whom, and this rank's index among the holders of its shards, with their number.

    Raises ConfigError for a hybrid of nodes with different numbers of ranks.
    """
    kind, world, local = runtime.device.type, runtime.world_size, runtime.local_world_size
    if not engine.hybrid:
        return init_device_mesh(kind, (world,)), (0, 1)
    if len(set(runtime.gather(local))) > 1:
        raise ConfigError("engine.hybrid: the nodes have different numbers of ranks: take engine.hybrid=false")
    mesh = init_device_mesh(kind, (world // local, local), mesh_dim_names=("replicate", "shard"))
    return mesh, (runtime.rank // local, world // local)
