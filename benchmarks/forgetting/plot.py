"""`python -m benchmarks.forgetting.plot`: draws docs/forgetting.svg from benchmarks/results/forgetting.json.

By any Python that has matplotlib (pip install ".[plot]"); nothing is trained or read besides.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import sys
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402

from benchmarks.forgetting.figures import BOTH, LEAST_GAIN, MOST_RISE, NONE, Course, results  # noqa: E402
from durable import write_atomic  # noqa: E402

ROOT = Path(__file__).parent.parent.parent
RECORD = ROOT / "benchmarks" / "results" / "forgetting.json"
PICTURE = ROOT / "docs" / "forgetting.svg"
INK = "#123456"
"""Stands for the page's own colour of text, which a picture cannot know: light or dark by the reader's setting."""
STYLE = "<style>svg{color:#24292f}@media(prefers-color-scheme:dark){svg{color:#d0d7de}}</style>"
ARMS = {  # told apart by colour-blind people (Okabe and Ito), and by mark and line without colours
    NONE: (INK, "o", "-"),
    "low LR": ("#e69f00", "v", "--"),
    "replay": ("#009e73", "s", "-"),
    "EWC": ("#2a8fd0", "^", "-."),
    "L2-SP": ("#cc79a7", "D", ":"),
    BOTH: ("#d55e00", "P", "--"),
}
FONT = 9


def main() -> None:
    text = RECORD.read_bytes()
    write_atomic(PICTURE, draw(json.loads(text), hashlib.sha256(text).hexdigest()))


def draw(record: dict[str, Any], digest: str) -> str:
    """SVG that says which record it is of."""
    pyplot.rcParams.update(
        {
            **{f"{part}.color": INK for part in ("text", "xtick", "ytick")},
            "axes.edgecolor": INK,
            "axes.labelcolor": INK,
            "axes.titlecolor": INK,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.facecolor": "none",
            "font.size": FONT,
            "axes.titlesize": FONT + 1,
            "svg.fonttype": "none",
            "svg.hashsalt": "outlast",
            "font.family": "sans-serif",
            "font.sans-serif": ["DejaVu Sans"],
        }
    )
    figure, (general, domain, trade) = pyplot.subplots(1, 3, figsize=(10.5, 3.9))
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
    return with_ink(figure, digest)


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


def with_ink(figure: Any, digest: str) -> str:
    out = io.StringIO()
    figure.savefig(
        out, format="svg", transparent=True, metadata={"Date": None, "Description": f"{RECORD.name} {digest}"}
    )
    text = out.getvalue().replace(INK, "currentColor")
    return re.sub(r"(<svg [^>]*>)", rf"\1{STYLE}", text, count=1)


if __name__ == "__main__":
    sys.exit(main())
