"""The report as a picture, for slides and messages: the charts, by matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from settings import ConfigError
from timeline import PARTS
from trainer.report import words
from trainer.report.charts import Chart
from trainer.report.goodput import WORDS, Split
from trainer.report.page import Report

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#000000")  # Okabe and Ito's, for every eye
_DASHES = ("-", "--", ":", "-.", (0, (4, 4)), (0, (12, 5)))
_PARTS = ("#0072b2", "#56b4e9", "#009e73", "#e69f00", "#d55e00", "#cc79a7", "#c3cad2")
_HATCHES = ("", "", "", "||", "////", "", "\\\\")


def write_png(report: Report, target: Path) -> None:
    """Raises ConfigError where matplotlib is not there."""
    try:
        import matplotlib
    except ImportError:
        raise ConfigError("--png needs matplotlib: pip install matplotlib; report.html does without") from None
    matplotlib.use("agg")
    from matplotlib import pyplot

    columns = 2
    rows = 1 + -(-len(report.charts) // columns)
    figure = pyplot.figure(figsize=(12, 1.6 + 2.7 * (rows - 0.5)), layout="constrained")
    grid = figure.add_gridspec(rows, columns, height_ratios=[0.3] + [1] * (rows - 1))
    stands = words.standing(report.run)
    figure.suptitle(f"{report.run.name}: {stands.word}, {words.progress(report.run)}", fontsize=16, fontweight="bold")
    _time(figure.add_subplot(grid[0, :]), report.where, report.proof.verdict)
    for index, chart in enumerate(report.charts):
        _chart(figure.add_subplot(grid[1 + index // columns, index % columns]), chart)
    figure.savefig(target, dpi=110)
    pyplot.close(figure)


def _time(axes: Any, where: Split, verdict: str) -> None:
    begin, wall = 0.0, where.wall or 1.0
    for part, seconds, colour, hatch in zip(PARTS, where.parts.tolist(), _PARTS, _HATCHES, strict=True):
        label = f"{WORDS[part]}: {words.span(seconds)}, {seconds / wall:.1%}"
        axes.barh(0, seconds, left=begin, color=colour, hatch=hatch, edgecolor="white", label=label)
        begin += seconds
    axes.set_xlim(0, wall)
    axes.set_axis_off()
    axes.set_title(f"goodput {where.goodput:.1%} of the time with nodes; {verdict}", loc="left", fontsize=11)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=3, frameon=False, fontsize=9)


def _chart(axes: Any, chart: Chart) -> None:
    named: set[str] = set()
    for one in chart.curves:
        again = one.style < 0
        colour = "#777777" if again else _COLOURS[one.style % len(_COLOURS)]
        dashes = (0, (3, 2)) if again else _DASHES[one.style % len(_DASHES)]
        if (one.high > one.low).any():
            axes.fill_between(one.x, one.low, one.high, color=colour, alpha=0.22, linewidth=0)
        label = one.name if one.name not in named else None
        marker = "o" if one.dots and len(one.x) <= 60 else None
        axes.plot(
            one.x, one.mean, color=colour, linestyle=dashes, linewidth=1.5, marker=marker, markersize=4, label=label
        )
        named.add(one.name)
    for at, _ in chart.marks:
        axes.axvline(at, color="#777777", linewidth=0.8, linestyle=(0, (2, 3)))
    if chart.log:
        axes.set_yscale("log")
    axes.set_title(f"{chart.title}{f' ({chart.unit})' if chart.unit else ''}", loc="left", fontsize=11)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if len(named) > 1:
        axes.legend(frameon=False, fontsize=9)
