"""What DeepSpeed's ZeRO holds and sends (0.19.8). Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainer.engines.deepspeed.settings import Deepspeed
from trainer.plan.architecture import Architecture
from trainer.plan.state import Held, Parameters, Ranks, Sizes, ring
from trainer.schema import TrainConfig

_DEFAULTS = {  # elements; DeepSpeed's
    "reduce_bucket_size": 500_000_000,
    "sub_group_size": 1_000_000_000,
    "stage3_max_live_parameters": 1_000_000_000,
    "stage3_prefetch_bucket_size": 50_000_000,
}


def held(model: Architecture, settings: TrainConfig, ranks: Ranks) -> Held:
    engine, parameters = settings.engine, Parameters.of(model, settings)
    assert isinstance(engine, Deepspeed)
    zero, stage, compute, trained = engine.zero, engine.stage, Sizes.of(settings).compute, parameters.trained
    every = trained + parameters.frozen
    if stage == 0:  # in fp32: as ddp does it, but for the buckets
        early = 4.0 * trained * (ranks.accumulation > 1)
        return Held(4.0 * every, 8.0 * trained, 4.0 * trained, early, shards=1, between=compute)
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
    more = {"buffers": buffers, "stepping": stepped, "host": host, "disk": disk}
    return Held(*held, **more, shards=ranks.world, between=compute)


def sent(model: Architecture, settings: TrainConfig, ranks: Ranks) -> float:
    engine, parameters, again = settings.engine, Parameters.of(model, settings), ranks.accumulation
    assert isinstance(engine, Deepspeed)
    gathers = {0: 0, 1: 1, 2: 1, 3: 2 * again}[engine.stage]
    reduces = {0: 2, 1: 1, 2: again, 3: again}[engine.stage]
    moved = gathers * (parameters.trained + parameters.frozen) + reduces * parameters.trained
    return ring(Sizes.of(settings).compute * moved, ranks.world)


def _number(zero: Mapping[str, Any], model: Architecture, key: str) -> float:
    """Elements, as DeepSpeed and zero.py read them."""
    auto = {
        "reduce_bucket_size": model.hidden**2,
        "stage3_prefetch_bucket_size": 0.9 * model.hidden**2,
    }
    value = zero.get(key, _DEFAULTS[key])
    return float(auto[key] if value == "auto" else value)
