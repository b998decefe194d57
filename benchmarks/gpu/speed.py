"""B1, B3, B8: how fast a step is, beside Trainer's; what recomputing costs; what torch.compile adds to our loop."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch

from benchmarks.gpu.child import Tell, reason, told
from benchmarks.gpu.figures import Figure
from benchmarks.gpu.ours import Case, Ours, Speed
from benchmarks.gpu.peers import HfTrainer, pace_of
from benchmarks.gpu.place import Place
from trainer.engines.fsdp.settings import Fsdp
from trainer.model import attention, recompute
from trainer.schema import EveryK

CASES = {
    "1B": Case("1B", 4096, 8),
    "3B": Case("3B", 4096, 4),
    "8B 16N": Case("8B", 8192, 1, 8, recompute=True, engine=Fsdp()),  # ddp's autocast would keep 2N more
    "8B 12N": Case("8B", 8192, 1, 8, precision="adam32", recompute="selective"),
}
BOTH = ("1B", "3B")
"""In ddp and, for comparison, in fsdp."""
MFU_GOALS = {"1B": 0.52, "3B": 0.55, "8B 16N": 0.52, "8B 12N": 0.55}
TIMES = 1.25
"""As fast as Trainer with its gradient checkpointing, at least."""
ROUNDS = 2
Turn = Callable[[Place], list[float]]


def throughput(name: str, place: Place) -> None:
    """B1: whole optimizer steps, A/B/A/B: each turn builds its contender, since two at a time do not fit."""
    case = CASES[name].at(place)
    peer = "HF Trainer, checkpointing"  # as it is mostly run at these sizes; ours computes again what has no room alone
    peer += ", pure bf16 (8N)" * (case.precision != "master32")
    ours = {"outlast": OursTurn(case)}
    if name in BOTH:
        ours["outlast, fsdp"] = OursTurn(replace(case, engine=Fsdp()))

    def theirs(place: Place) -> list[float]:
        taken: list[float] = []
        HfTrainer(case, place, pure="pure" in peer).run(pace_of(place, taken), steps=100)
        return taken

    taken, failed = race({**ours, peer: theirs}, place)
    speeds = {who: Speed(case, place).of(median(spent)) for who, spent in taken.items()}
    other = speeds.get(peer, {})
    for who, turn in ours.items():
        title = f"{name} T={case.tokens}{who.removeprefix('outlast')}"
        note = f"{turn.case.how}; {in_words(taken[who])}" if who in taken else turn.case.how
        mfu, pace = (speeds.get(who, {}).get(key) for key in ("mfu", "tokens_per_second"))
        cause = "" if mfu else failed.get(who, "no data sheet peak is known for this device")
        figure = Figure(f"{title}: MFU", "", mfu, peer, other.get("mfu"), row="B1", note=note, cause=cause)
        goal = MFU_GOALS[name]
        place.tell(figure.judged(f"at least {goal:.0%}", mfu is not None and mfu >= goal))
        cause = "; ".join(f"{one}: {failed[one]}" for one in (who, peer) if one in failed)
        note = in_words(taken[peer]) if peer in taken else ""
        figure = Figure(f"{title}: pace", "tokens/s", pace, peer, other.get("tokens_per_second"), row="B1", cause=cause)
        place.tell(replace(figure, note=f"{peer}: {note}" if note else "").faster(TIMES))


class OursTurn:
    """One turn of ours; where memory ends, more is computed again from then on."""

    def __init__(self, case: Case) -> None:
        self.case = case

    def __call__(self, place: Place) -> list[float]:
        while True:
            try:
                return self._turn(place)
            except torch.OutOfMemoryError:
                more = {False: "selective", "selective": True}.get(self.case.recompute)
                if more is None:
                    raise
            self.case = replace(self.case, recompute=more)
            place.free()

    def _turn(self, place: Place) -> list[float]:
        ours = Ours(self.case, place)
        batch = ours.batch()
        taken = place.paced(lambda: ours.step(batch))
        ours.close()
        return taken


def race(turns: dict[str, Turn], place: Place) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Seconds of the steps of each, and why what failed did."""
    taken: dict[str, list[float]] = {}
    failed: dict[str, str] = {}
    for number in range(ROUNDS):
        for index, (name, turn) in enumerate(turns.items()):
            share = place.left() / (len(turns) * (ROUNDS - number) - index)
            slow = number and share < 4 * max(taken.get(name, [0.0]))  # one round of long steps is better than none
            if name in failed or slow:
                continue
            try:
                taken[name] = taken.get(name, []) + turn(place.within(0.9 * share))
            except Exception as error:
                failed[name] = reason(error)
            place.free()
    return taken, failed


def in_words(taken: list[float]) -> str:
    low = quantiles(taken, n=5)[0] if len(taken) > 1 else taken[0]
    return f"{len(taken)} steps, median {median(taken):.4g} s, p20 {low:.4g} s"


# --- B3 ---------------------------------------------------------------------------------------------------

MODES: dict[str, Any] = {
    "full": True,
    "every_k: 2": EveryK(2),
    "every_k: 4": EveryK(4),
    "selective": "selective",
    "none": False,
}


def recomputing(place: Place) -> None:
    """B3: forward and backward in every mode of gradient checkpointing, on one model."""
    size = "8B" if place.memory > 120e9 else "3B"
    ours = Ours(Case(size, 8192, 1, precision="adam32").at(place), place)
    batch = ours.batch()

    def in_mode(mode: Any) -> None:
        ours.model.activation_checkpointing_disable()
        recompute.enable(ours.model, replace_mode(ours, mode))
        ours.pass_(batch)

    works = {name: partial(in_mode, mode) for name, mode in MODES.items()}
    times, failed = place.in_turn(works, most=10)
    peaks = {name: place.peak(works[name]) for name in times}
    tokens, title = ours.case.step_tokens, f"{size} 12N T={ours.case.tokens}"
    for name in MODES:
        pace = tokens / times[name] if name in times else None
        note = f"{peaks[name] / 2**30:.3g} GiB above what stands" if name in peaks else ""
        place.tell(Figure(f"{title}, {name}", "tokens/s", pace, row="B3", cause=failed.get(name, ""), note=note))
    if not times:
        return
    best = min(times, key=lambda name: times[name])
    note = f"forward and backward alone; the fastest of those that fit: {best}"
    full = tokens / times["full"] if "full" in times else None
    figure = Figure(f"{title}, best", "tokens/s", tokens / times[best], "full", full, row="B3", note=note)
    place.tell(figure.faster(1.15))


def replace_mode(ours: Ours, mode: Any) -> Any:
    from msgspec.structs import replace as changed

    return changed(ours.settings.train, gradient_checkpointing=mode)


# --- B8 ---------------------------------------------------------------------------------------------------

COMPILED = {
    "1B": Case("1B", 4096, 8, precision="adam32"),
    "8B": Case("8B", 8192, 1, precision="adam32", recompute=True),
}
COLD, WARM, GAIN = 25.0, 6.0, 1.02


def compiling(size: str, place: Place) -> None:
    """B8: each decoder layer compiled by itself, with an empty cache and with that which it left, a process each."""
    case, found = COMPILED[size].at(place), {}
    cache = place.folder / f"inductor-{size}"
    for index, (kind, limit) in enumerate((("cold", COLD), ("warm", WARM))):
        until = time.monotonic() + place.left() / (2 - index)
        try:
            work = partial(compiled, case, replace(place, until=until - 5), cache)
            [found[kind]] = told(work, until, place.folder / "compile.log")
        except Exception as error:
            found[kind] = {"reason": reason(error)}
        words = {"cause": found[kind].get("reason", ""), "note": found[kind].get("note", "")}
        figure = Figure(f"{case}: compile, {kind}", "s", found[kind].get("compile"), row="B8", **words)
        place.tell(figure.at_most(limit))
    last = found["warm"] if "compiled" in found["warm"] else found["cold"]
    pace = {kind: case.step_tokens / last[kind] if kind in last else None for kind in ("compiled", "eager")}
    note = f"{_backend(place)}, {case.how}; forward and backward alone"
    figure = Figure(f"{case}: compiled", "tokens/s", pace["compiled"], "eager", pace["eager"], row="B8", note=note)
    place.tell(replace(figure, cause=last.get("reason", "")).faster(GAIN))


def compiled(case: Case, place: Place, cache: Path, tell: Tell) -> None:
    """In a process of its own, since compiled code and the cache's place are kept in it."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache)
    os.environ["TRITON_CACHE_DIR"] = str(cache / "triton")
    ours = Ours(case, place)
    batch = ours.batch()
    layers = ours.model.base_model.layers
    attention.register(compiled=True)
    forwards = [torch.compile(layer.forward, backend=_backend(place), dynamic=False) for layer in layers]

    def once(with_compile: bool) -> None:
        for layer, forward in zip(layers, forwards, strict=True):
            layer.__dict__.pop("forward", None)
            if with_compile:
                layer.forward = forward
        ours.forget_gradients()
        ours.pass_(batch)

    place.seconds(partial(once, False))
    first = [place.seconds(partial(once, True)) for _ in range(2)]
    times, failed = place.in_turn({"eager": partial(once, False), "compiled": partial(once, True)}, most=10)
    if failed:
        raise RuntimeError("; ".join(failed.values()))
    graphs = torch._dynamo.utils.counters
    breaks = sum(graphs["graph_break"].values())
    note = f"{graphs['stats'].get('unique_graphs', 0)} graphs, {breaks} graph breaks"
    tell({**times, "compile": max(0.0, sum(first) - 2 * times["compiled"]), "note": note})


def _backend(place: Place) -> str:
    """Without a GPU inductor would compile C++ for half a minute."""
    return "aot_eager" if place.reduced else "inductor"
