"""B2, B4: what a step takes at most in many settings; the loss of large vocabularies in time and memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from statistics import median
from typing import Any

import torch

from benchmarks.gpu.child import reason
from benchmarks.gpu.figures import Figure
from benchmarks.gpu.ours import Case, Ours, settings
from benchmarks.gpu.peers import whole_logits_loss
from benchmarks.gpu.place import Place
from trainer.engines.fsdp.settings import Fsdp
from trainer.memory import held_by
from trainer.model import loss
from trainer.model.loss import Tail, teach_the_head
from trainer.plan import architecture, batch_layout
from trainer.plan.memory import memory
from trainer.schema import EveryK

GIB = 2**30
CASES = [
    Case("1B", 4096, 1),
    Case("1B", 4096, 4),
    Case("1B", 4096, 4, recompute="selective"),
    Case("1B", 4096, 4, recompute=EveryK(2)),
    Case("1B", 4096, 4, recompute=True),
    Case("1B", 4096, 4, recompute=True, engine=Fsdp()),
    Case("1B", 16_384, 1, recompute=True),
    Case("1B", 4096, 4, precision="adam32", recompute=True),
    Case("1B", 4096, 4, precision="bf16", recompute=True),
    Case("1B", 4096, 4, precision="bf16", recompute=True, optimizer="adamw_8bit"),
    Case("3B", 4096, 1, recompute="selective"),
    Case("3B", 4096, 2, precision="adam32", recompute=True),
]
ALONE = ("CUDA", "fragments")
"""Parts of a plan that torch's allocator does not count."""
MEDIAN, WORST = 0.016, 0.05
RULES = {"accelerate, 4 x fp32": 16, "DeepSpeed, 18 bytes a parameter": 18}  # neither knows of activations


def peaks(place: Place) -> None:
    """B2: the peak of two whole steps, beside what trainer/memory.py knows of before: the state."""
    errors: dict[str, list[float]] = {rule: [] for rule in RULES}
    ours: list[float] = []
    for case in (case.at(place) for case in CASES):
        if place.left() < 0:
            place.tell(Figure(f"{case}, {case.how}: peak", "GiB", row="B2", cause="no time left"))
            continue
        try:
            peak, reserved, state, parameters = steps_of(case, place)
        except Exception as error:
            place.tell(Figure(f"{case}, {case.how}: peak", "GiB", row="B2", cause=reason(error)))
        else:
            planned = plan_of(case, place)
            ours.append((planned - peak) / peak)
            note = f"{reserved / GIB:.4g} GiB reserved; planned {planned / GIB:.4g} ({ours[-1]:+.1%})"
            figure = Figure(f"{case}, {case.how}: peak", "GiB", peak / GIB, row="B2", note=note)
            place.tell(replace(figure, limit_name="state", limit=state / GIB))
            for rule, found in errors.items():
                found.append((RULES[rule] * parameters - peak) / peak)
        place.free()
    said = "; ".join(f"{rule}: {min(found):+.0%} to {max(found):+.0%}" for rule, found in errors.items() if found)
    sizes = sorted(map(abs, ours))
    error = 100 * median(sizes) if sizes else None
    figure = Figure("error of the plan", "%", error, row="B2", note=f"of peers' rules: {said}")
    met = bool(sizes) and median(sizes) <= MEDIAN and sizes[-1] <= WORST
    cause = "" if met else f"from {min(ours):+.1%} to {max(ours):+.1%}" if ours else "nothing was measured"
    place.tell(replace(figure, cause=cause).judged(f"at most {MEDIAN:.1%} median, {WORST:.0%} max", met))


def plan_of(case: Case, place: Place) -> float:
    """Bytes that the plan says torch's allocator will hold at most."""
    config = settings(case, place)
    assert config.model.config is not None
    model, on_gpu = architecture.read(config.model.config), place.device.type == "cuda"
    parts = memory(model, config, batch_layout(config.train, 1), 1, on_gpu=on_gpu).device
    return sum(size for name, size in parts.items() if name not in ALONE)


def steps_of(case: Case, place: Place) -> tuple[int, int, int, int]:
    """Bytes at most, bytes reserved, bytes of the state, parameters."""
    parts: dict[str, Any] = {}

    def work() -> None:
        ours = parts["ours"] = Ours(case, place)
        batch = ours.batch()
        for _ in range(2):
            ours.step(batch)

    peak = place.peak(work)
    ours = parts.pop("ours")
    state, parameters = held_by(ours.engine, 0).state, sum(p.numel() for p in ours.model.parameters())
    peak = max(peak, state)  # on the CPU a tiny model finds room in what is resident already
    reserved = peak if place.reduced else torch.cuda.max_memory_reserved()
    ours.close()
    return peak, reserved, state, parameters


# --- B4 ---------------------------------------------------------------------------------------------------

HIDDEN, VOCABULARY = 4096, 128_256
OWN = loss._ELEMENTS["cuda"]
PIECES = [OWN, *(size for size in (1 << 24, 1 << 26, 1 << 28) if size != OWN)]
"""Logits that stand at a time; the first is the product's own."""
SLOWER, LESS = 1.05, 0.5


def large_vocabulary(place: Place) -> None:
    """B4: head and loss, forward and backward, in bf16."""
    for index, tokens in enumerate((8192, 32_768)):
        one_size(tokens, place.within(place.left() / (2 - index)))
        place.free()


def one_size(tokens: int, place: Place) -> None:
    tokens, width, vocabulary = (tokens // 64, 64, 4096) if place.reduced else (tokens, HIDDEN, VOCABULARY)
    shape = (tokens, width, vocabulary)
    works = {f"outlast, pieces of 2^{size.bit_length() - 1}": head(*shape, size, place) for size in PIECES}
    works["HF, whole logits"] = head(*shape, None, place)
    title = f"{tokens:,} tokens, {vocabulary:,} words"
    try:
        works["Liger"] = liger(*shape, place)
    except ImportError as error:
        place.tell(Figure(f"{title}: Liger", "ms", row="B4", cause=reason(error)))
    times, failed = place.in_turn(works)
    taken = {name: place.peak(works[name]) for name in times}
    mine, peer = list(works)[0], "HF, whole logits"
    for name in works:
        note = f"{taken[name] / GIB:.4g} GiB" if name in taken else ""
        milliseconds = 1000 * times[name] if name in times else None
        place.tell(Figure(f"{title}: {name}", "ms", milliseconds, row="B4", cause=failed.get(name, ""), note=note))
    slower = times[mine] / times[peer] if mine in times and peer in times else None
    place.tell(Figure(f"{title}: time beside whole logits", "x", slower, row="B4", note=mine).at_most(SLOWER))
    less = taken[mine] / taken[peer] if mine in taken and taken.get(peer) else None
    cause = "" if less is not None else "less than a page of memory more"
    place.tell(Figure(f"{title}: memory beside whole logits", "x", less, row="B4", cause=cause).at_most(LESS))


def head(tokens: int, width: int, vocabulary: int, pieces: int | None, place: Place) -> Callable[[], None]:
    """Forward and backward of a head and its loss: ours in pieces of so many logits, or transformers'."""
    hidden, labels, linear = material(tokens, width, vocabulary, place)
    every = torch.arange(tokens, device=place.device)
    if pieces is not None:
        teach_the_head(linear, Tail())

    def once() -> None:
        if pieces is None:
            total = whole_logits_loss(linear(hidden), labels)
        else:
            loss._ELEMENTS[place.device.type] = pieces
            total = linear(hidden, labels, every) / tokens
        total.backward()
        hidden.grad = linear.weight.grad = None

    return once


def material(
    tokens: int, width: int, vocabulary: int, place: Place
) -> tuple[torch.Tensor, torch.Tensor, torch.nn.Linear]:
    made: dict[str, Any] = {"device": place.device, "dtype": torch.bfloat16}
    hidden = torch.randn(tokens, width, requires_grad=True, **made)
    labels = torch.randint(0, vocabulary, (tokens,), device=place.device)
    return hidden, labels, torch.nn.Linear(width, vocabulary, bias=False, **made)


def liger(tokens: int, width: int, vocabulary: int, place: Place) -> Callable[[], None]:
    """Raises ImportError."""
    from liger_kernel.transformers.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyLoss

    hidden, labels, linear = material(tokens, width, vocabulary, place)
    fused = LigerFusedLinearCrossEntropyLoss()

    def once() -> None:
        fused(linear.weight, hidden, labels).backward()
        hidden.grad = linear.weight.grad = None

    return once
