"""When a rank has no memory left: a line in the events says so, from which the supervisor knows the cause, what took
the memory, and what would take less."""

from __future__ import annotations

import re
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from trainer.engines.ddp.settings import Ddp
from trainer.engines.engine import Engine
from trainer.engines.fsdp.settings import Fsdp
from trainer.engines.optimizer import local
from trainer.layout import BatchLayout
from trainer.model.four_bit import held_bytes
from trainer.records.events import Events
from trainer.runtime import Runtime
from trainer.schema import TrainConfig

_BY_THE_DRIVER = "CUDA error: out of memory"  # what is asked for past torch's allocator: by NCCL, by libraries
# The words of torch's CPU allocator, which raises a bare RuntimeError.
_ON_THE_HOST = "DefaultCPUAllocator: can't allocate memory"
_UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_RECOMPUTED = 0.75
"""Share of the activations that gradient checkpointing saves at least, in what was measured (benchmarks/memory)."""
_QUANTIZED = 0.6
"""Share of the frozen weights' bytes that 4 bits save beside bf16: computed for Llamas of 1 and 8 billion parameters,
whose embedding and head stay in bf16."""


@dataclass(frozen=True)
class Held:
    """Bytes of one rank."""

    weights: int
    """Also the frozen ones, as they are kept."""
    gradients: int
    moments: int
    total: int

    @property
    def state(self) -> int:
        return self.weights + self.gradients + self.moments

    @property
    def frozen(self) -> int:
        """Of the weights; those that are trained take what their gradients take."""
        return self.weights - self.gradients

    @property
    def trained(self) -> int:
        return self.state - self.frozen

    @property
    def rest(self) -> int:
        """Activations above all."""
        return max(0, self.total - self.state)

    def __str__(self) -> str:
        parts = {"weights": self.weights, "gradients": self.gradients, "moments": self.moments}
        return ", ".join(
            f"{name} {size / 1e9:.1f} GB" for name, size in {**parts, "activations and more": self.rest}.items()
        )


def note_out_of_memory(
    error: RuntimeError | MemoryError,
    runtime: Runtime,
    phase: str,
    settings: TrainConfig,
    layout: BatchLayout | None = None,
    engine: Engine | None = None,
) -> None:
    """By the rank that it befalls, whichever that is; any other error is left alone. `layout` and `engine`: when they
    stand already."""
    on_gpu = isinstance(error, torch.OutOfMemoryError) or _BY_THE_DRIVER in str(error)
    if not (on_gpu or isinstance(error, MemoryError) or _ON_THE_HOST in str(error)):
        return
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    allocated = torch.cuda.memory_allocated() if on_gpu else peak
    values: dict[str, Any] = {
        "rank": runtime.rank,
        "phase": phase,
        "device": "cuda" if on_gpu else "cpu",
        "allocated": allocated,
        "reserved": torch.cuda.memory_reserved() if on_gpu else peak,
    }
    if layout is not None and engine is not None:
        held = held_by(engine, allocated)
        values |= {"held": str(held), "advice": advice(settings, layout, held, wanted(str(error)))}
    Events(runtime.run_dir, runtime.epoch, active=True).write("oom", **values, error=str(error).partition("\n")[0])


def held_by(engine: Engine, total: int) -> Held:
    """What a rank holds of the model's state; gradients as they are in a step."""
    sizes = {"weights": 0, "exp_avg": 0, "exp_avg_sq": 0}
    frozen = (parameter for parameter in engine.module.parameters() if not parameter.requires_grad)
    kept_as_is = sum(held_bytes(local(getattr(parameter, "ds_tensor", parameter))) for parameter in frozen)
    for shard in engine.shards():
        for kind, kept in shard.tensors.items():
            sizes[kind] += kept.nbytes
    moments = sizes["exp_avg"] + sizes["exp_avg_sq"]
    return Held(kept_as_is + sizes["weights"], sizes["weights"], moments, total)


def wanted(error: str) -> int:
    """Bytes that the allocator was asked for, in its own words; 0: it does not say."""
    if found := re.search(r"Tried to allocate ([\d.]+) (B|KiB|MiB|GiB)", error):
        return int(float(found[1]) * _UNITS[found[2]])
    found = re.search(r"tried to allocate (\d+) bytes", error)
    return int(found[1]) if found else 0


def advice(settings: TrainConfig, layout: BatchLayout, held: Held, needed: int) -> str:
    """The cheapest setting that would have made room for what was asked for; else the one that saves most."""
    found = list(_savings(settings, layout, held))
    if not found:
        return "spread the model over more GPUs"
    text, saved = next((one for one in found if one[1] >= needed), max(found, key=lambda one: one[1]))
    enough = "" if saved >= needed else ", which is not enough by itself"
    return f"{text} would save about {saved / 1e9:.1f} GB{enough}"


def _savings(settings: TrainConfig, layout: BatchLayout, held: Held) -> Iterator[tuple[str, float]]:
    """Settings and the bytes that they would save, the cheapest in time first; those that make another run last."""
    train, engine, micro = settings.train, settings.engine, layout.micro_batch_size
    quantized = settings.lora is not None and settings.lora.quantize is not None
    if micro > 1:
        share = micro * layout.gradient_accumulation_steps
        smaller = max(size for size in range(1, micro) if share % size == 0)
        yield f"train.micro_batch_size={smaller}", held.rest * (1 - smaller / micro)
    if train.gradient_checkpointing is False:
        yield "train.gradient_checkpointing=true", held.rest * _RECOMPUTED
    if isinstance(engine, Ddp) and layout.data_parallel_size > 1 and not quantized:
        yield "engine.kind=fsdp", held.state * (1 - 1 / layout.data_parallel_size)
    if isinstance(engine, Fsdp) and not engine.offload:
        yield "engine.offload=true", float(held.state)
    if isinstance(engine, Ddp | Fsdp) and settings.optim.name == "adamw":
        yield "a new run with optim.name=adamw_8bit", held.moments * 0.7
    if isinstance(engine, Ddp | Fsdp) and train.precision in ("fp32", "master32"):
        # What is in 4 bits, and beside it, takes no less then.
        yield "a new run with train.precision=bf16", (held.trained if quantized else held.state) * 0.5
    if isinstance(engine, Ddp) and settings.lora and not quantized and train.bf16_passes and settings.model.path:
        yield "a new run with lora.quantize=nf4", held.frozen * _QUANTIZED
