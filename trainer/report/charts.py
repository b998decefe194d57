"""What the report draws, as data: each chart's curves, made so small that a run of any length is a picture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trainer.records.history import Floats, Mask
from trainer.report.run import Run

POINTS = 500
"""Of a curve; what lies between two of them is there as their least and largest."""
_WIDE = 60.0  # largest over least, from which on the axis is logarithmic


@dataclass(frozen=True)
class Curve:
    """(points,) each; `low` and `high` are those of all values that a point stands for."""

    name: str
    x: Floats
    mean: Floats
    low: Floats
    high: Floats
    style: int = 0
    """Which colour and dashes."""
    dots: bool = False


@dataclass(frozen=True)
class Chart:
    key: str
    title: str
    unit: str
    curves: list[Curve]
    marks: list[tuple[float, str]]
    """Where attempts went on, and their numbers."""
    note: str = ""

    @property
    def log(self) -> bool:
        low, high = self.low, self.high
        return self.key == "grad_norm" and low > 0 and high > _WIDE * low

    @property
    def low(self) -> float:
        return min(float(curve.low.min()) for curve in self.curves)

    @property
    def high(self) -> float:
        return max(float(curve.high.max()) for curve in self.curves)

    @property
    def first(self) -> float:
        return min(float(curve.x[0]) for curve in self.curves)

    @property
    def last(self) -> float:
        return max(float(curve.x[-1]) for curve in self.curves)


def curve(name: str, x: Floats, y: Floats, style: int = 0, dots: bool = False) -> Curve | None:
    """Of points in the order of x; None: there are none. A y that is not finite is left out."""
    finite = np.isfinite(y)
    x, y = x[finite], y[finite]
    if not len(y):
        return None
    if len(y) <= POINTS:
        return Curve(name, x, y, y, y, style, dots)
    edges = np.arange(POINTS) * len(y) // POINTS
    counts = np.diff(edges, append=len(y))
    low, high = np.minimum.reduceat(y, edges), np.maximum.reduceat(y, edges)
    return Curve(name, np.add.reduceat(x, edges) / counts, np.add.reduceat(y, edges) / counts, low, high, style, dots)


def charts(run: Run, planned: float | None) -> list[Chart]:
    """Those that there are numbers for. `planned`: GiB of a rank, where they can be compared with what was measured."""
    kept = run.history.kept()
    order = np.argsort(run.history.whole("step")[kept], kind="stable")
    steps = run.history.whole("step")[kept][order].astype(np.float64)

    def column(key: str, scale: float = 1.0) -> Floats:
        return run.history.numbers(key)[kept][order] * scale

    held_out = _held_out(run)
    marks = [(float(one.first_step), str(one.number)) for one in run.attempts[1:] if one.first_step]
    found = [
        ("loss", "Loss", "", [curve("training", steps, column("loss")), *_thrown_away(run, kept), *held_out[:1]], ""),
        ("held_out", "Loss on each held-out set", "", held_out if len(held_out) > 1 else [], _rise(held_out)),
        ("lr", "Learning rate", "", [curve("rate", steps, column("lr"))], ""),
        ("grad_norm", "Gradient norm", "", [curve("norm", steps, column("grad_norm"))], "before clipping"),
        ("speed", "Speed", "tokens/s", [curve("tokens", steps, column("tokens_per_second"))], ""),
        ("mfu", "Model FLOPs utilisation", "%", [curve("MFU", steps, column("mfu", 100))], ""),
        ("memory", "Memory of rank 0", "GiB", _memory(steps, column("memory_bytes", 1 / 2**30), planned), _where(run)),
    ]
    out = []
    for key, title, unit, curves, note in found:
        there = [one for one in curves if one is not None]
        if there:
            out.append(Chart(key, title, unit, there, marks, note))
    return out


def _held_out(run: Run) -> list[Curve | None]:
    """A curve for each held-out set: what a model forgets is one that rises."""
    points: dict[str, dict[int, float]] = {}
    for event in run.history.in_line("evaluation"):
        for name, loss in (event.get("losses") or {"": event.get("loss")}).items():
            points.setdefault(name, {})[int(event["step"])] = np.nan if loss is None else float(loss)
    found = []
    for style, (name, losses) in enumerate(points.items(), 1):
        x = np.array(sorted(losses), np.float64)
        found.append(
            curve(f"held-out {name}".strip(), x, np.array([losses[int(step)] for step in x]), style, dots=True)
        )
    return found


def _rise(held_out: list[Curve | None]) -> str:
    said = [f"{one.name} {one.mean[-1] / one.mean[0] - 1:+.1%}" for one in held_out if one and one.mean[0]]
    return f"since its first: {', '.join(said)}"


def _thrown_away(run: Run, kept: Mask) -> list[Curve | None]:
    """What was done again: the last pieces of it."""
    epochs, steps, loss = run.history.whole("epoch"), run.history.whole("step"), run.history.numbers("loss")
    found = []
    for epoch in np.unique(epochs[~kept]).tolist():
        own = ~kept & (epochs == epoch)
        found.append(curve("done again", steps[own].astype(np.float64), loss[own], style=-1))
    return found[-20:]


def _memory(steps: Floats, used: Floats, planned: float | None) -> list[Curve | None]:
    flat = [curve("planned", steps[[0, -1]], np.full(2, planned), style=2)] if planned and len(steps) else []
    return [curve("measured", steps, used), *flat]


def _where(run: Run) -> str:
    return "what torch has reserved on its GPU, at most" if run.on_gpu else "its whole process on the CPU, at most"


def ticks(low: float, high: float) -> list[float]:
    """Round numbers between, about four."""
    if high <= low:
        return [low]
    rough = (high - low) / 4
    power = 10.0 ** np.floor(np.log10(rough))
    step = float(next(power * one for one in (1, 2, 2.5, 5, 10) if power * one >= rough))
    first = np.ceil(low / step - 1e-9) * step
    return [float(round(value / step) * step) for value in np.arange(first, high + step * 1e-6, step)]


def powers(low: float, high: float) -> list[float]:
    """Powers of ten between, at most five."""
    exponents = np.arange(np.ceil(np.log10(low) - 1e-9), np.floor(np.log10(high) + 1e-9) + 1)
    return [float(10.0**exponent) for exponent in exponents[:: max(1, -(-len(exponents) // 5))]]


def short(value: float) -> str:
    """For an axis: 12k, 1.5M, 0.002, 3e-5."""
    for power, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= power:
            return f"{value / min(power, 1e3 if letter == 'k' else power):.4g}{letter}"
    if value and abs(value) < 1e-3:
        digits, exponent = f"{value:.1e}".split("e")
        return f"{float(digits):g}e{int(exponent)}"
    return f"{value:,.4g}" if abs(value) < 1e3 else f"{value:,.0f}"


def apart(marks: list[tuple[float, str]], width: float) -> list[tuple[float, str]]:
    """The marks whose labels do not lie on each other."""
    out = marks[:1]
    for mark in marks[1:]:
        if mark[0] - out[-1][0] >= width:
            out.append(mark)
    return out
