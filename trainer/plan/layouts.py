"""Which layouts fit, and which of them is fastest. Torch-free.

A layout changes nothing of what is trained: engine, what is recomputed, the micro batch, nodes and GPUs.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace

from settings import ConfigError
from trainer.engines.ddp.settings import Ddp
from trainer.engines.deepspeed.settings import Deepspeed
from trainer.engines.deepspeed.zero import ACCUMULATION, MICRO
from trainer.engines.fsdp.settings import Fsdp
from trainer.layout import BatchLayout
from trainer.plan import batch_layout
from trainer.plan.architecture import Architecture
from trainer.plan.devices import Device
from trainer.plan.memory import Memory, memory
from trainer.plan.state import Parameters
from trainer.plan.time import Time, time
from trainer.schema import EngineSettings, EveryK, TrainConfig

MODES: list[tuple[Any, bool]] = [
    *((False, False), ("selective", False), (EveryK(2), False), (True, False), (True, True)),
]
"""train.gradient_checkpointing and train.activation_offload."""
_MICRO = (8, 4, 2, 1)
SPARE = 0.03
"""Share of a GPU's memory that a layout must leave to be proposed: the plan's own error."""
_NODES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)


@dataclass(frozen=True)
class Planned:
    """A recipe on some GPUs."""

    settings: TrainConfig
    layout: BatchLayout
    nodes: int
    gpus: int
    """Of each node."""
    device: Device
    memory: Memory
    time: Time
    asked: TrainConfig
    """The recipe that it is a layout of."""

    @property
    def fits(self) -> bool:
        return self.memory.gpu <= self.device.bytes

    @property
    def free(self) -> float:
        """Bytes of a GPU."""
        return self.device.bytes - self.memory.gpu

    @property
    def words(self) -> list[str]:
        """What is typed after the recipe to get it."""
        return [f"--nodes {self.nodes}", f"--gpus {self.gpus}", *self.keys]

    @property
    def keys(self) -> list[str]:
        """The layout's fields as key=value."""
        return [*_engine_words(self.settings.engine, self.asked.engine), *_train_words(self.settings, self.asked)]


def _engine_words(engine: EngineSettings, asked: EngineSettings) -> Iterator[str]:
    if isinstance(engine, Deepspeed):  # never another than the recipe's own
        return
    yield f"engine.kind={engine.__struct_config__.tag}"
    # A typed engine of the recipe's own kind is laid over it, one of another kind takes its place.
    there = asked if type(asked) is type(engine) else type(engine)()
    for name in engine.__struct_fields__:
        if (value := getattr(engine, name)) != getattr(there, name):
            yield f"engine.{name}={json.dumps(value)}"


def _train_words(settings: TrainConfig, asked: TrainConfig) -> list[str]:
    train, out = settings.train, []
    mode = train.gradient_checkpointing
    shown = f"{{every_k: {mode.every_k}}}" if isinstance(mode, EveryK) else str(mode).lower()
    quote = "'" if isinstance(mode, EveryK) else ""
    out.append(f"{quote}train.gradient_checkpointing={shown}{quote}")
    if train.activation_offload or asked.train.activation_offload:
        out.append(f"train.activation_offload={json.dumps(train.activation_offload)}")
    if isinstance(asked.engine, Deepspeed) and not isinstance(settings.engine, Deepspeed):  # its JSON may have said it
        out.append(f"train.global_batch_size={train.global_batch_size}")
    return [*out, f"train.micro_batch_size={train.micro_batch_size}"]


def planned(
    model: Architecture,
    settings: TrainConfig,
    nodes: int,
    gpus: int,
    device: Device,
    steps: int,
    asked: TrainConfig | None = None,
) -> Planned:
    """`asked`: the recipe, where these settings are another layout of it. Raises ConfigError where the global batch
    does not divide by the ranks."""
    asked, layout = asked or settings, batch_layout(settings.train, nodes * gpus)
    settings = replace(settings, train=replace(settings.train, micro_batch_size=layout.micro_batch_size))
    if not device.on_gpu:  # ranks share their node's memory
        device = dataclasses.replace(device, bytes=device.bytes / gpus)
    return Planned(
        *(settings, layout, nodes, gpus, device),
        memory(model, settings, layout, gpus, device.on_gpu),
        time(model, settings, layout, nodes, device, steps),
        asked,
    )


def alternatives(
    model: Architecture, settings: TrainConfig, nodes: int, gpus: int, device: Device, steps: int
) -> list[Planned]:
    """All that fit on these GPUs, the fastest first; of equally fast ones that which leaves most memory."""
    found = []
    for one in _variants(settings, nodes, gpus):
        try:
            made = planned(model, one, nodes, gpus, device, steps, settings)
        except ConfigError:
            continue
        if made.free >= SPARE * made.device.bytes:
            found.append(made)
    return sorted(found, key=_order)


def _order(one: Planned) -> tuple[float, int, int]:
    """The fastest; of equally fast ones what talks least, and makes its matrices largest."""
    match one.settings.engine:
        case Ddp():
            talk = 0
        case Fsdp(offload=False, reduce_each=False) as engine:
            talk = 1 if engine.hybrid else 2
        case _:
            talk = 3
    return float(f"{one.time.step:.3g}"), talk, -one.layout.micro_batch_size


def smallest(model: Architecture, settings: TrainConfig, gpus: int, device: Device, steps: int) -> Planned | None:
    """The fewest GPUs that it fits on without offload, else with; `gpus`: of a full node. None: it never does."""
    for offload in (False, True):
        for nodes, each in _sizes(gpus):
            if settings.train.global_batch_size % (nodes * each):
                continue
            found = alternatives(model, settings, nodes, each, device, steps)
            found = [one for one in found if offload or one.time.offload == 1]
            if found:
                return found[0]
    return None


def _sizes(gpus: int) -> Iterator[tuple[int, int]]:
    yield from ((1, each) for each in range(1, gpus) if gpus % each == 0)
    yield from ((nodes, gpus) for nodes in _NODES)


def _variants(settings: TrainConfig, nodes: int, gpus: int) -> Iterator[TrainConfig]:
    for engine in _engines(settings, nodes, gpus):
        for mode, offload in MODES:
            train = settings.train
            if mode == "selective" and (train.compile or train.kernels or isinstance(engine, Deepspeed)):
                continue
            for micro in _micros(engine, settings, nodes * gpus):
                modes: dict[str, Any] = {"gradient_checkpointing": mode, "activation_offload": offload}
                yield replace(settings, engine=engine, train=replace(settings.train, micro_batch_size=micro, **modes))


def _micros(engine: EngineSettings, settings: TrainConfig, ranks: int) -> tuple[int, ...]:
    """Where DeepSpeed's JSON fixes it, its own alone."""
    if not isinstance(engine, Deepspeed) or not isinstance(micro := engine.json.get(MICRO), int):
        return _MICRO
    accumulation = engine.json.get(ACCUMULATION)
    fixed = isinstance(accumulation, int) and micro * accumulation * ranks != settings.train.global_batch_size
    return () if fixed else (micro,)


def _engines(settings: TrainConfig, nodes: int, gpus: int) -> Iterator[Any]:
    quantized = settings.lora is not None and settings.lora.quantize is not None
    if isinstance(settings.engine, Deepspeed):
        yield settings.engine
    layers = settings.engine.layers if isinstance(settings.engine, Fsdp) else []
    yield Ddp()
    if nodes * gpus > 1 and not quantized:
        yield Fsdp(layers=layers)
    if nodes > 1 and gpus > 1 and not quantized:
        yield Fsdp(layers=layers, hybrid=True)
    if not quantized:
        yield Fsdp(layers=layers, offload=True)
    if nodes * gpus > 1 and not quantized and settings.train.global_batch_size > nodes * gpus:
        yield Fsdp(layers=layers, reduce_each=True)


def parameters(model: Architecture, settings: TrainConfig) -> str:
    """In words."""
    of = Parameters.of(model, settings)
    text = f"{_count(model.parameters)} parameters"
    if model.active < model.parameters:
        text += f", {_count(model.active)} of them active for a token"
    if of.frozen:
        text += f", {_count(of.trained)} trained"
    return text if model.known else f"about {text} ({model.model_type} is not known here: taken for a Llama)"


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.3g} B" if parameters >= 1e9 else f"{parameters / 1e6:.3g} M"
