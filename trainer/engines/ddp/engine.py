"""Every rank holds everything; gradients are summed over the ranks."""

from __future__ import annotations

from contextlib import nullcontext
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from trainer.data.batches import MicroBatch
from trainer.engines.engine import SteppedByOurs
from trainer.engines.optimizer import Optimizer
from trainer.engines.stopwatch import Stopwatch
from trainer.layout import BatchLayout
from trainer.model.loss import LossModel
from trainer.model.model import materialize
from trainer.runtime import Runtime
from trainer.schema import TrainConfig


def build(config: TrainConfig, layout: BatchLayout, model: torch.nn.Module, runtime: Runtime) -> DdpEngine:
    return DdpEngine(config, model, runtime)


class DdpEngine(SteppedByOurs):
    def __init__(self, config: TrainConfig, model: torch.nn.Module, runtime: Runtime) -> None:
        self.replicas = (runtime.rank, runtime.world_size)
        materialize(model, runtime.device)
        model.to(runtime.device)
        self._runtime = runtime
        self._autocast = config.train.bf16_passes and not config.train.bf16_weights
        self.optimizer = Optimizer(model, config)
        self.stopwatch = Stopwatch(model, runtime.device)
        self.module: torch.nn.Module = LossModel(model)
        if runtime.world_size > 1:
            # find_unused_parameters keeps the gradient buckets as they are. Without it they are rebuilt after the
            # first step, a resumed process has other buckets in its first step than one that went on, and at three
            # ranks and more the sums differ in their last bits.
            self.module = DistributedDataParallel(
                self.module, find_unused_parameters=True, forward_sync_buffers=False, gradient_as_bucket_view=True
            )
            if config.train.bf16_weights:
                self.module.register_comm_hook(None, _mean_in_fp32)

    def loss(self, batch: MicroBatch) -> Tensor:
        with torch.autocast(self._runtime.device.type, torch.bfloat16, enabled=self._autocast):
            return cast(Tensor, self.module(batch))

    def backward(self, batch: MicroBatch, valid_tokens: int, last: bool) -> Tensor:
        module = self.module
        local = module.no_sync() if isinstance(module, DistributedDataParallel) and not last else nullcontext()
        with local:
            loss = self.loss(batch)
            # The ranks' gradients are averaged: times their number makes it the sum.
            (loss * (self._runtime.world_size / max(1, valid_tokens))).backward()
        return loss.detach()


def _mean_in_fp32(_, bucket):  # type: ignore[no-untyped-def]  # torch compares annotations, and ours are texts
    """bf16 gradients are averaged in fp32 and rounded once, a bucket at a time."""
    total = bucket.buffer().float().div_(dist.get_world_size())
    work = dist.all_reduce(total, async_op=True)
    assert work is not None
    return work.get_future().then(lambda done: bucket.buffer().copy_(done.value()[0]))
