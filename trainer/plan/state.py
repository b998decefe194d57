"""The words in which each engine says what it holds of weights, gradients and moments, and what it keeps besides to
pass them around (plan.py in its folder of trainer/engines/). Torch-free."""

from __future__ import annotations

from dataclasses import dataclass, field

from trainer.engines import module_of
from trainer.layout import BatchLayout
from trainer.plan.architecture import Architecture
from trainer.schema import TrainConfig

SENT = 4
"""Bytes of a gradient on its way: summed in fp32 (DeepSpeed: in what it computes in)."""
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
    shards: int = field(kw_only=True)
    """Ranks that share out weights and moments."""
    between: int = field(kw_only=True)
    """Bytes of a value that goes from layer to layer."""


@dataclass(frozen=True)
class Ranks:
    world: int
    local: int
    """Of a node."""
    accumulation: int
    """Micro batches of a step."""
    on_gpu: bool = True

    @classmethod
    def of(cls, layout: BatchLayout, local: int, on_gpu: bool = True) -> Ranks:
        return cls(layout.data_parallel_size, local, layout.gradient_accumulation_steps, on_gpu)


def held(model: Architecture, settings: TrainConfig, ranks: Ranks) -> Held:
    one: Held = module_of(settings.engine, "plan").held(model, settings, ranks)
    return one


def sent(model: Architecture, settings: TrainConfig, ranks: Ranks) -> float:
    """Bytes that each rank sends in a step."""
    return float(module_of(settings.engine, "plan").sent(model, settings, ranks))


def ring(size: float, ranks: int) -> float:
    """Bytes that each of so many ranks sends when `size` is gathered, or reduced to shares: twice that where all get
    the sum."""
    return size * (ranks - 1) / ranks


STRETCH = 1 << 22


def stretch(model: Architecture, settings: TrainConfig, shards: int) -> float:
    """What a step on less than fp32 holds at a time (trainer/engines/lean.py): eight tensors of a stretch."""
    return 8 * 4 * min(STRETCH, model.largest / shards) if settings.lean_optimizer else 0.0
