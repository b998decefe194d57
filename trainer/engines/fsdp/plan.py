"""What fsdp holds and sends: torch's fully_shard (2.13). Torch-free."""

from __future__ import annotations

from dataclasses import replace

from trainer.engines.fsdp.settings import Fsdp
from trainer.plan.architecture import Architecture
from trainer.plan.state import SENT, Held, Parameters, Ranks, Sizes, ring, stretch
from trainer.schema import TrainConfig


def held(model: Architecture, settings: TrainConfig, ranks: Ranks) -> Held:
    engine, sizes, parameters = settings.engine, Sizes.of(settings), Parameters.of(model, settings)
    assert isinstance(engine, Fsdp)
    shards = _shards(engine, ranks)
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
        shards=shards,
        between=compute,
        weights=weights,
        moments=moments,
        gradients=gradients,
        early=early,
        forward=root + (gathered or one),
        # A layer, the next one on its way, and the buffer that it comes in.
        backward=root + (gathered or (3 if ranks.on_gpu else 2) * one) + reduced,
        end=_root_end(model, compute, shards, ranks, engine.offload) * full + 4 * layer * ranks.on_gpu * full,
        late=0.0 if early else sizes.gradients * model.root * full / shards,
        stepping=stretch(model, settings, shards),
    )
    if not engine.offload:
        return held
    on_device = 2 * sizes.weights * max(layer, model.root) / shards
    host = weights + moments + gradients
    early = early if ranks.accumulation > 1 and not engine.reduce_each else 0.0
    there = {"weights": 0, "moments": 0, "gradients": 0, "late": 0, "stepping": 0}
    return replace(held, **there, early=early, buffers=on_device, host=host)


def _root_end(model: Architecture, compute: int, shards: int, ranks: Ranks, away: bool) -> float:
    """The gradients of the root unit as they are computed, the fp32 buffer that is reduced, Gloo's copy of it; `away`:
    what comes of it is not counted as a gradient, since it lies on the host."""
    buffer, share = 4.0 * model.root, 4.0 * model.root / shards
    beside = max(compute * model.root, share) if away else max(0.0, compute * model.root - share)
    return buffer + beside + buffer * (ranks.world > 1 and not ranks.on_gpu)


def sent(model: Architecture, settings: TrainConfig, ranks: Ranks) -> float:
    engine, sizes, parameters = settings.engine, Sizes.of(settings), Parameters.of(model, settings)
    assert isinstance(engine, Fsdp)
    shards, again = _shards(engine, ranks), ranks.accumulation
    gathers, reduces = again * (2 if engine.reshard else 1), again if engine.reduce_each else 1
    gathered = ring(sizes.compute * (parameters.trained + parameters.frozen), shards)
    between = 2 * ring(SENT * parameters.trained / shards, ranks.world // shards)
    return gathers * gathered + reduces * ring(SENT * parameters.trained, shards) + between


def _shards(engine: Fsdp, ranks: Ranks) -> int:
    return ranks.local if engine.hybrid else ranks.world
