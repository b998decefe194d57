"""Loss on held-out batches: the same ones every time, the same ones at every world size."""

from __future__ import annotations

import torch

from trainer.data.batches import MicroBatch, evaluation_batches
from trainer.data.prepared import Prepared
from trainer.engines.engine import Engine
from trainer.plan import BatchLayout
from trainer.runtime import Runtime
from trainer.stop import Agreement, Stop


def evaluate(
    engine: Engine, prepared: Prepared, layout: BatchLayout, batches: int, runtime: Runtime, stop: Stop
) -> float | Agreement:
    """Mean loss a valid token over the held-out batches; or the agreement to stop, which breaks it off."""
    engine.module.eval()
    total, tokens = 0.0, 0
    try:
        with torch.no_grad():
            for batch in evaluation_batches(prepared, layout, runtime.rank, batches):
                agreement = stop.cast(batch).read()
                if agreement.reason is not None:
                    return agreement
                total += sum(engine.loss(to_device(micro, runtime)).item() for micro in batch.micro_batches)
                tokens += agreement.valid_tokens
    finally:
        engine.module.train()
    return runtime.sum(total) / max(1, tokens)


def to_device(batch: MicroBatch, runtime: Runtime) -> MicroBatch:
    """The batch where the model is."""
    if runtime.device.type == "cpu":
        return batch
    tensors = (batch.input_ids, batch.labels, batch.position_ids)
    return MicroBatch(*(tensor.pin_memory().to(runtime.device, non_blocking=True) for tensor in tensors))
