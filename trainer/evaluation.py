"""Loss on held-out batches: the same ones every time, the same ones at every world size."""

from __future__ import annotations

import torch

from trainer.data.batches import evaluation_batches
from trainer.data.feed import Feed
from trainer.data.prepared import Prepared
from trainer.engines.engine import Engine, forward_only
from trainer.layout import BatchLayout
from trainer.runtime import Runtime
from trainer.stop import Stop
from trainer.votes import Agreement


def evaluate(
    engine: Engine, prepared: Prepared, layout: BatchLayout, batches: int, runtime: Runtime, stop: Stop
) -> float | Agreement:
    """Mean loss a valid token over the held-out batches; or the agreement to stop, which breaks it off."""
    total, tokens = torch.zeros((), dtype=torch.float64, device=runtime.device), 0
    with forward_only(engine.module), Feed(evaluation_batches(prepared, layout, runtime.rank, batches)) as feed:
        while (agreement := stop.agree(feed)).reason is None and (batch := feed.take()) is not None:
            for micro in batch.micro_batches:
                total += engine.loss(micro.to(runtime.device))
            tokens += agreement.valid_tokens
    if agreement.reason is not None:
        return agreement
    return runtime.sum(float(total)) / max(1, tokens)
