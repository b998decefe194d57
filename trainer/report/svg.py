"""A chart as HTML: curves in an SVG that fills any width, words around it in the page's own size.

The drawing is stretched, its lines are not; so one text size serves a phone, a wide screen and paper, without a script.
"""

from __future__ import annotations

from html import escape

import numpy as np

from trainer.records.history import Floats
from trainer.report.charts import Chart, Curve, apart, powers, short, ticks

SIZE = 1000.0
"""Of the drawing, both ways."""


class Axes:
    """From a chart's numbers to places in the drawing."""

    def __init__(self, chart: Chart) -> None:
        self.log = chart.log
        self.left, self.right = chart.first, max(chart.last, chart.first + 1e-9)
        if self.log:
            self.low, self.high = chart.low * 0.9, chart.high * 1.1
        else:
            room = 0.06 * (chart.high - chart.low) or 0.05 * abs(chart.high) or 1.0
            self.low, self.high = chart.low - room, chart.high + room
            if chart.low >= 0 and chart.low < 0.35 * chart.high:
                self.low = 0.0

    def x(self, value: Floats | float) -> Floats:
        return np.asarray((np.asarray(value) - self.left) / (self.right - self.left) * SIZE)

    def y(self, value: Floats | float) -> Floats:
        low, high, at = self.low, self.high, np.asarray(value)
        if self.log:
            low, high, at = np.log(low), np.log(high), np.log(np.maximum(at, low))
        return np.asarray((1 - (at - low) / (high - low)) * SIZE)

    def y_ticks(self) -> list[float]:
        return powers(self.low, self.high) if self.log else ticks(self.low, self.high)


def figure(chart: Chart) -> str:
    axes = Axes(chart)
    x_ticks = [tick for tick in ticks(axes.left, axes.right) if tick >= axes.left]
    grid = [f"M0 {axes.y(tick):.1f}H{SIZE:g}" for tick in axes.y_ticks()]
    marks = "".join(f"M{axes.x(at):.1f} 0V{SIZE:g}" for at, _ in chart.marks)
    drawn = "".join(_drawn(curve, axes) for curve in sorted(chart.curves, key=lambda one: one.style < 0, reverse=True))
    svg = (
        f'<svg viewBox="0 0 {SIZE:g} {SIZE:g}" preserveAspectRatio="none" role="img" aria-label="{escape(said(chart))}"'
        f'><path class="grid" d="{"".join(grid)}"/><path class="mark" d="{marks}"/>{drawn}</svg>'
    )
    left = "".join(_label("y", "top", axes.y(tick), short(tick)) for tick in axes.y_ticks())
    below = "".join(_label("x", "left", axes.x(tick), short(tick)) for tick in x_ticks)
    shown = apart(chart.marks, 0.06 * (axes.right - axes.left))
    above = "".join(_label("m", "left", axes.x(at), name) for at, name in shown)
    scale = ", logarithmic" if chart.log else ""
    unit = f' <span class="unit">{escape(chart.unit)}{scale}</span>' if chart.unit or scale else ""
    note = f'<p class="note">{escape(chart.note)}</p>' if chart.note else ""
    return (
        f'<figure id="plot-{chart.key}"><figcaption>{escape(chart.title)}{unit}{_legend(chart)}</figcaption>'
        f'<div class="plot">{svg}{left}{below}{above}</div>{note}</figure>'
    )


def said(chart: Chart) -> str:
    """For who cannot see it."""
    one = chart.curves[0]
    return (
        f"{chart.title}: {short(float(one.mean[0]))} at step {short(float(one.x[0]))}, "
        f"{short(float(one.mean[-1]))} at step {short(float(one.x[-1]))}"
    )


def _drawn(curve: Curve, axes: Axes) -> str:
    kind = "again" if curve.style < 0 else f"c{curve.style % 6}"
    x, points = axes.x(curve.x), _points(axes.x(curve.x), axes.y(curve.mean))
    band = ""
    if (curve.high > curve.low).any():
        around = _points(np.concatenate([x, x[::-1]]), axes.y(np.concatenate([curve.high, curve.low[::-1]])))
        band = f'<path class="band {kind}" d="M{around}Z"/>'
    line = f'<path class="line {kind}" d="M{points}"/>' if len(x) > 1 else ""
    few = curve.dots and len(x) <= 60 or len(x) == 1
    # A line of no length with round ends: the one shape that stretching leaves round.
    dots = "".join(f"M{point}h0" for point in points.split("L")) if few else ""
    return f"{band}{line}" + (f'<path class="dot {kind}" d="{dots}"/>' if dots else "")


def _points(x: Floats, y: Floats) -> str:
    return "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(x.tolist(), y.tolist(), strict=True))


def _label(kind: str, side: str, at: Floats, text: str) -> str:
    return f'<span class="{kind}" style="{side}:{float(at) / SIZE:.2%}">{escape(text)}</span>'


def _legend(chart: Chart) -> str:
    names = list(dict.fromkeys((one.name, "again" if one.style < 0 else f"c{one.style % 6}") for one in chart.curves))
    if len(names) < 2:
        return ""
    keys = "".join(
        f'<span class="key"><svg viewBox="0 0 26 8" aria-hidden="true"><path class="line {kind}" d="M1 4H25"/></svg>'
        f"{escape(name)}</span>"
        for name, kind in names
    )
    return f'<span class="legend">{keys}</span>'
