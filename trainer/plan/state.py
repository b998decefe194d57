"""What each engine holds of weights, gradients and moments, and what it keeps besides to pass them around. Torch-free.

Read from trainer/engines and from what they call: torch's fully_shard and DistributedDataParallel (2.13), DeepSpeed
0.19.8.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainer.plan.architecture import Architecture
from trainer.schema import Ddp, Deepspeed, Fsdp, TrainConfig

_DDP_BUCKET = 25 << 20  # bytes; torch's default
_ZERO = {  # elements; DeepSpeed's defaults
    "reduce_bucket_size": 500_000_000,
    "sub_group_size": 1_000_000_000,
    "stage3_max_live_parameters": 1_000_000_000,
    "stage3_prefetch_bucket_size": 50_000_000,
}
_NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes of a weight in 4 bits: a scale in 8 bits for each 64, and one in fp32 for each 256 of these."""


@dataclass(frozen=True)
class Sizes:
    """Bytes of one value, as the precision recipe keeps it."""

    weights: int
    moments: float
    """Of both."""
    compute: int

    @property
    def gradients(self) -> int:
        return self.weights

    @classmethod
    def of(cls, settings: TrainConfig) -> Sizes:
        train = settings.train
        moments = {"bf16": 4.0}.get(train.precision, 8.0)
        if settings.optim.name == "adamw_8bit":
            moments = 2 * (1 + 4 / 256)
        return cls(2 if train.bf16_weights else 4, moments, 2 if train.bf16_passes else 4)


@dataclass(frozen=True)
class Parameters:
    """Of a model as it is trained."""

    trained: int
    frozen: int
    frozen_bytes: float

    @classmethod
    def of(cls, model: Architecture, settings: TrainConfig) -> Parameters:
        lora = settings.lora
        if lora is None:
            return cls(model.parameters, 0, 0)
        rows = len(lora.tokens) if isinstance(lora.tokens, list) else len(settings.model.new_tokens or [])
        trained = lora.r * model.sides + rows * model.hidden
        kept: float = Sizes.of(settings).weights * model.parameters
        if lora.quantize:
            dense = sum(layer.count * (layer.matrices if not layer.routes else 0) for layer in model.layers)
            kept = _NF4 * dense + 2 * (model.parameters - dense)
        return cls(trained, model.parameters, kept)


@dataclass(frozen=True)
class Held:
    """Bytes of one rank on its device; `host` and `disk`: besides. Gradients grow from `early` to `gradients` in the
    backward pass of a step's last micro batch."""

    weights: float
    moments: float
    gradients: float
    early: float
    forward: float = 0.0
    """Weights that are gathered, or copied in another precision, when the loss is computed."""
    backward: float = 0.0
    """The same in the backward pass, with the gradients that are not shared out yet."""
    end: float = 0.0
    """The same at its end, when the gradients of what stands outside of the layers come."""
    late: float = 0.0
    """Of the gradients, what comes only then."""
    buffers: float = 0.0
    stepping: float = 0.0
    """While the optimizer steps."""
    host: float = 0.0
    disk: float = 0.0


@dataclass(frozen=True)
class Ranks:
    world: int
    local: int
    """Of a node."""
    accumulation: int
    """Micro batches of a step."""
    on_gpu: bool = True


def held(model: Architecture, settings: TrainConfig, ranks: Ranks) -> Held:
    sizes, parameters = Sizes.of(settings), Parameters.of(model, settings)
    match settings.engine:
        case Ddp():
            return _ddp(model, settings, ranks, sizes, parameters)
        case Fsdp():
            return _fsdp(model, settings, settings.engine, ranks, sizes, parameters)
        case Deepspeed():
            return _deepspeed(model, settings.engine, ranks, sizes, parameters)


def _stretch(model: Architecture, settings: TrainConfig, shards: int) -> float:
    """What a step on less than fp32 holds at a time (trainer/engines/lean.py): eight tensors of a stretch."""
    return 8 * 4 * min(1 << 22, model.largest / shards) if settings.lean_optimizer else 0.0


def _ddp(model: Architecture, settings: TrainConfig, ranks: Ranks, sizes: Sizes, parameters: Parameters) -> Held:
    trained = parameters.trained
    gradients = sizes.gradients * trained
    resident = ranks.world > 1 or ranks.accumulation > 1  # views of the buckets
    quantized = settings.lora is not None and settings.lora.quantize is not None
    # Autocast keeps a bf16 copy of each linear layer's weights from the forward pass on.
    copied = sizes.compute < sizes.weights and not quantized
    dense = [layer.matrices if not layer.routes else layer.active for layer in model.layers]
    whole = 2.0 * copied * sum(layer.count * size for layer, size in zip(model.layers, dense, strict=True))
    again = 2.0 * copied * max(dense)
    buckets = 2 * 2 * _DDP_BUCKET if ranks.world > 1 and sizes.gradients == 2 else 0
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
        stepping=_stretch(model, settings, 1),
    )


def _fsdp(
    model: Architecture, settings: TrainConfig, engine: Fsdp, ranks: Ranks, sizes: Sizes, parameters: Parameters
) -> Held:
    shards = ranks.local if engine.hybrid else ranks.world
    compute, layer = sizes.compute, max(one.parameters for one in model.layers)
    weights = (sizes.weights * parameters.trained + parameters.frozen_bytes) / shards
    moments, gradients = (size * parameters.trained / shards for size in (sizes.moments, sizes.gradients))
    early = 0.0
    if ranks.accumulation > 1:  # fp32 and not shared out before the last micro batch, unless each is
        early = gradients if engine.reduce_each else 4.0 * parameters.trained
    root, one = compute * model.root, compute * layer
    gathered = compute * (model.parameters - model.root) if not engine.reshard else 0.0
    full, talks = not settings.lora, ranks.world > 1
    # Gloo reduces a copy of what it is given; on a GPU a layer's buffer stays until the next one's is reduced.
    reduced = (4 * layer * (1 + (talks and not ranks.on_gpu)) + one) * full
    held = Held(
        weights=weights,
        moments=moments,
        gradients=gradients,
        early=early,
        forward=root + (gathered or one),
        # A layer, the next one on its way, and the buffer that it comes in.
        backward=root + (gathered or (3 if ranks.on_gpu else 2) * one) + reduced,
        end=_root_end(model, compute, shards, ranks, engine.offload) * full + 4 * layer * ranks.on_gpu * full,
        late=0.0 if early else sizes.gradients * model.root * full / shards,
        stepping=_stretch(model, settings, shards),
    )
    if not engine.offload:
        return held
    on_device = 2 * sizes.weights * max(layer, model.root) / shards
    host = weights + moments + gradients
    early = early if ranks.accumulation > 1 and not engine.reduce_each else 0.0
    return Held(0, 0, 0, early, held.forward, held.backward, held.end, buffers=on_device, host=host)


def _root_end(model: Architecture, compute: int, shards: int, ranks: Ranks, away: bool) -> float:
    """The gradients of the root unit as they are computed, the fp32 buffer that is reduced, Gloo's copy of it; `away`:
    what comes of it is not counted as a gradient, since it lies on the host."""
    buffer, share = 4.0 * model.root, 4.0 * model.root / shards
    beside = max(compute * model.root, share) if away else max(0.0, compute * model.root - share)
    return buffer + beside + buffer * (ranks.world > 1 and not ranks.on_gpu)


def _deepspeed(model: Architecture, engine: Deepspeed, ranks: Ranks, sizes: Sizes, parameters: Parameters) -> Held:
    zero, stage, compute, trained = engine.zero, engine.stage, sizes.compute, parameters.trained
    every = trained + parameters.frozen
    if stage == 0:  # in fp32: as ddp does it, but for the buckets
        return Held(4.0 * every, 8.0 * trained, 4.0 * trained, 4.0 * trained * (ranks.accumulation > 1))
    share = trained / ranks.world
    optimizer, params = engine.place("optimizer"), engine.place("param")
    bucket = min(_number(zero, model, "reduce_bucket_size"), trained) * compute
    bucket *= 2 if zero.get("overlap_comm", stage == 3) else 1
    # fp32 weights, and the gradient as it is stepped on.
    masters, moments, stepped = 4 * share, 8 * share, 4 * share
    weights, gradients = float(compute * every), float(compute * trained)
    forward = buffers = 0.0
    if stage >= 2:
        gradients /= ranks.world
    if stage == 3:
        weights /= ranks.world
        # What was gathered stays until so much of it is there.
        forward = compute * min(_number(zero, model, "stage3_max_live_parameters"), every)
        backward = forward + compute * min(_number(zero, model, "stage3_prefetch_bucket_size"), every)
        stepped, buffers = 4 * min(share, _number(zero, model, "sub_group_size")), bucket
    else:
        backward = bucket
    host = disk = 0.0
    if optimizer != "none":
        away = 16 * share + (gradients if stage == 3 else 0)
        host, disk = (away, 0.0) if optimizer == "cpu" else (4.0 * 4 * min(share, 1e9), away)
        masters = moments = stepped = 0
        gradients = 0.0 if stage >= 2 else gradients
    if params != "none":
        host, disk = (host + weights, disk) if params == "cpu" else (host, disk + weights)
        weights = 0.0
    early = gradients if ranks.accumulation > 1 or stage in (1, 3) else 0.0
    held = (weights + masters, moments, gradients, early, forward, backward, backward)
    return Held(*held, buffers=buffers, stepping=stepped, host=host, disk=disk)


def _number(zero: Mapping[str, Any], model: Architecture, key: str) -> float:
    """Elements, as DeepSpeed and trainer/zero.py read them."""
    auto = {
        "reduce_bucket_size": model.hidden**2,
        "stage3_prefetch_bucket_size": 0.9 * model.hidden**2,
    }
    value = zero.get(key, _ZERO[key])
    return float(auto[key] if value == "auto" else value)
