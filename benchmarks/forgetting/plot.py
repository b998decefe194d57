"""`python -m benchmarks.forgetting.plot`: draws docs/forgetting.svg from benchmarks/results/forgetting.json.

By any Python that has matplotlib; nothing is trained or read besides.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.axes import Axes

from benchmarks.forgetting.figures import BOTH, LEAST_GAIN, MOST_RISE, NONE, Course, results
from docs import picture
from durable import write_atomic

ROOT = Path(__file__).parent.parent.parent
RECORD = ROOT / "benchmarks" / "results" / "forgetting.json"
PICTURE = ROOT / "docs" / "forgetting.svg"
ARMS = {  # told apart by mark and line too, without colours
    NONE: (picture.INK, "o", "-"),
    "low LR": (picture.ORANGE, "v", "--"),
    "replay": (picture.GREEN, "s", "-"),
    "EWC": (picture.BLUE, "^", "-."),
    "L2-SP": (picture.PINK, "D", ":"),
    BOTH: (picture.RED, "P", "--"),
}


def main() -> None:
    text = RECORD.read_bytes()
    write_atomic(PICTURE, draw(json.loads(text), hashlib.sha256(text).hexdigest()))


def draw(record: dict[str, Any], digest: str) -> str:
    """SVG that says which record it is of."""
    figure, (general, domain, trade) = picture.subplots(1, 3, figsize=(10.5, 3.9))
    for name in record["runs"]:
        courses = [Course(**one) for one in record["runs"][name]]
        curve(general, name, courses, "general")
        curve(domain, name, courses, "domain")
    general.set_title("general text")
    domain.set_title("domain")
    for axes in (general, domain):
        axes.set_xlabel("step")
    general.set_ylabel("held-out loss (nats a token)")
    trade_off(trade, record)
    handles, names = general.get_legend_handles_labels()
    figure.legend(handles, names, loc="lower center", ncols=len(names), frameon=False, handlelength=2.6)
    figure.tight_layout(rect=(0, 0.07, 1, 1), w_pad=2)
    return picture.svg(figure, f"{RECORD.name} {digest}")


def curve(axes: Axes, name: str, courses: list[Course], kind: str) -> None:
    """Mean over the seeds, from the least to the most."""
    colour, mark, line = ARMS[name]
    steps, losses = courses[0].steps, list(zip(*(getattr(one, kind) for one in courses), strict=True))
    axes.fill_between(steps, list(map(min, losses)), list(map(max, losses)), color=colour, alpha=0.15, linewidth=0)
    axes.plot(
        steps,
        list(map(mean, losses)),
        color=colour,
        marker=mark,
        linestyle=line,
        markersize=3.5,
        linewidth=1.4,
        label=name,
    )


def trade_off(axes: Axes, record: dict[str, Any]) -> None:
    """Small: what was tried on the choosing seed. Large: what was chosen, on the others."""
    none = Course(**record["tried"][NONE][record["chosen"][NONE]])
    for name, settings in record["tried"].items():
        colour, mark, _ = ARMS[name]
        points = [
            (course.gain_of(none), course.rise_of(none)) for course in (Course(**one) for one in settings.values())
        ]
        gains, rises = ([100 * share for share in shares] for shares in zip(*points, strict=True))
        line = "" if name == BOTH else "-"  # its settings are no line, but a grid
        axes.plot(gains, rises, mark + line, color=colour, markersize=3.5, linewidth=0.8, alpha=0.5)
    for one in results(record):
        colour, mark, _ = ARMS[one.arm]
        axes.plot(100 * one.gain_of.mean, 100 * one.rise_of.mean, mark, color=colour, markersize=8)
    right, low = axes.get_xlim()[1], min(0.0, axes.get_ylim()[0])
    axes.set(xlim=(axes.get_xlim()[0], right), ylim=(low, axes.get_ylim()[1]))
    corner = ([100 * LEAST_GAIN, right], low, 100 * MOST_RISE)
    axes.fill_between(*corner, color="#808080", alpha=0.2, linewidth=0)
    axes.annotate("goal", (right, low), (-4, 4), textcoords="offset points", ha="right")
    axes.set_title("what is kept for what is learnt")
    axes.set_xlabel("gain on the domain (% of none's)")
    axes.set_ylabel("rise of the general loss (% of none's)")


if __name__ == "__main__":
    sys.exit(main())
