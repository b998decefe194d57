"""B10: the optimizer's step in bytes a second, beside torch's own."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch

from benchmarks.case import LR
from benchmarks.gpu.child import reason
from benchmarks.gpu.figures import Figure
from benchmarks.gpu.ours import Case, draw, settings
from benchmarks.gpu.place import Place
from trainer.engines.ddp.engine import DdpEngine
from trainer.model.weights import hollow

SHARE = 0.85
"""Of the bandwidth that a copy reaches."""
BYTES = {  # read and written by one pass over a parameter: weights and moments twice, the gradient twice (the norm)
    "master32": 12 * 2 + 4 * 2,
    "adam32": (2 + 8) * 2 + 2 * 2,
    "bf16": 6 * 2 + 2 * 2,
    "adamw_8bit": (4 + 2.03) * 2 + 4 * 2,
}
CASES = [
    *(("1B", recipe) for recipe in BYTES),
    *((size, recipe) for size in ("3B", "8B") for recipe in ("master32", "adam32")),
]


def stepping(place: Place) -> None:
    """B10: clip and step of each recipe, on a whole model's parameters with random gradients."""
    for size, recipe in CASES:
        precision, moments = ("master32", recipe) if recipe == "adamw_8bit" else (recipe, "adamw")
        case = Case(size, 4096, 1, precision=precision, optimizer=moments).at(place)
        title = f"{size} {recipe}: clip and step"
        if place.left() < 0:
            place.tell(Figure(title, "ms", row="B10", cause="no time left"))
            continue
        try:
            one_size(title, case, BYTES[recipe], place)
        except Exception as error:
            place.tell(Figure(title, "ms", row="B10", cause=reason(error)))
        place.free()
    try:
        fused_adam()
    except ImportError as error:
        place.tell(Figure("DeepSpeed's FusedAdam", "ms", row="B10", cause=reason(error)))


def one_size(title: str, case: Case, moved: float, place: Place) -> None:
    config = settings(case, place)
    dtype = torch.bfloat16 if config.train.bf16_weights else torch.float32
    engine = DdpEngine(config, hollow(config.model, 0, dtype), place.runtime)
    draw(engine.shards(), place.device)
    named = engine.optimizer.named
    gradients = {name: torch.randn_like(parameter) for name, parameter in named.items()}

    def give() -> None:
        for name, parameter in named.items():
            parameter.grad = gradients[name]

    def ours() -> None:
        give()
        engine.step(LR, 1)

    works: dict[str, Callable[[], object]] = {"outlast": ours}
    count, size = sum(map(torch.Tensor.numel, named.values())), dtype.itemsize
    used = count * 8 + sum(shard.tensors["weights"].nbytes for shard in engine.shards()) * 2
    if used + count * 2 * size < 0.9 * place.memory:  # room for a peer's moments
        works |= {name: alone(made(list(named.values())), give) for name, made in peers().items()}
    times, failed = place.in_turn(works)
    if "outlast" in failed:
        raise RuntimeError(failed["outlast"])
    rate = count * moved / times["outlast"]
    for name, spent in times.items():
        if name != "outlast":
            figure = Figure(title, "ms", 1000 * times["outlast"], f"{name}, no clip", 1000 * spent, row="B10")
            place.tell(replace(figure, ratio=spent / times["outlast"], note=f"torch's moments are {dtype}"))
    for name, why in failed.items():
        place.tell(Figure(f"{title}, {name}", "ms", row="B10", cause=why))
    share = rate / place.copy_rate if place.copy_rate else None
    figure = Figure(f"{title}: of the bandwidth", "", share, row="B10", cause="" if share else "no copy was measured")
    note = f"{1000 * times['outlast']:.4g} ms, {moved:.3g} bytes a parameter, {rate / 1e12:.3g} TB/s"
    place.tell(replace(figure, note=note).judged(f"at least {SHARE:.0%}", share is not None and share >= SHARE))


Made = Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]


def peers() -> dict[str, Made]:
    options: dict[str, Any] = {"lr": LR, "betas": (0.9, 0.95), "weight_decay": 0.0}
    found: dict[str, Made] = {
        "torch fused": lambda parameters: torch.optim.AdamW(parameters, fused=True, **options),
        "torch foreach": lambda parameters: torch.optim.AdamW(parameters, foreach=True, **options),
    }
    with suppress(ImportError):
        theirs = fused_adam()
        found["DeepSpeed FusedAdam"] = lambda parameters: theirs(parameters, **options)
    return found


def alone(optimizer: torch.optim.Optimizer, give: Callable[[], None]) -> Callable[[], None]:
    """Its step, without a norm or clipping; its moments are in the parameters' type."""

    def once() -> None:
        give()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return once


def fused_adam() -> Any:
    """Where its kernels stand: to build them takes minutes. Raises ImportError."""
    from deepspeed.git_version_info import installed_ops

    if not installed_ops.get("fused_adam"):
        raise ImportError("DeepSpeed's kernel fused_adam is not built here")
    from deepspeed.ops.adam import FusedAdam

    return FusedAdam
