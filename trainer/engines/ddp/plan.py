"""What ddp holds and sends: torch's DistributedDataParallel (2.13) under autocast. Torch-free."""

from __future__ import annotations

from trainer.plan.architecture import Architecture
from trainer.plan.state import SENT, Held, Parameters, Ranks, Sizes, ring, stretch
from trainer.schema import TrainConfig

_BUCKET = 25 << 20  # bytes; torch's default


def held(model: Architecture, settings: TrainConfig, ranks: Ranks) -> Held:
    sizes, parameters = Sizes.of(settings), Parameters.of(model, settings)
    trained = parameters.trained
    gradients = sizes.gradients * trained
    resident = ranks.world > 1 or ranks.accumulation > 1  # views of the buckets
    quantized = settings.lora is not None and settings.lora.quantize is not None
    # Autocast keeps a bf16 copy of each linear layer's weights from the forward pass on.
    copied = sizes.compute < sizes.weights and not quantized
    dense = [layer.matrices if not layer.routes else layer.active for layer in model.layers]
    whole = 2.0 * copied * sum(layer.count * size for layer, size in zip(model.layers, dense, strict=True))
    again = 2.0 * copied * max(dense)
    buckets = 2 * 2 * _BUCKET if ranks.world > 1 and sizes.gradients == 2 else 0
    return Held(
        weights=sizes.weights * trained + parameters.frozen_bytes,
        moments=sizes.moments * trained,
        gradients=gradients,
        early=gradients if resident else 0,
        forward=whole,
        backward=again if settings.train.gradient_checkpointing else whole,
        # A tied embedding has two gradients until they are added.
        end=sizes.gradients * model.embedding * model.tied * (not settings.lora),
        late=0.0 if resident or settings.lora else sizes.gradients * model.embedding,
        buffers=min(buckets, 4 * trained),
        stepping=stretch(model, settings, 1),
        shards=1,
        between=sizes.weights,
    )


def sent(model: Architecture, settings: TrainConfig, ranks: Ranks) -> float:
    return 2 * ring(SENT * Parameters.of(model, settings).trained, ranks.world)
