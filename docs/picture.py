"""Pictures of the pages: SVG in the page's own colour of text, light or dark by the reader's setting."""

from __future__ import annotations

import io
import re
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot  # noqa: E402

INK = "#123456"
"""Stands for the page's own colour of text, which a picture cannot know."""
STYLE = "<style>svg{color:#24292f}@media(prefers-color-scheme:dark){svg{color:#d0d7de}}</style>"
FONT = 9
# Told apart by colour-blind people (Okabe and Ito).
ORANGE, GREEN, BLUE, PINK, RED = "#e69f00", "#009e73", "#2a8fd0", "#cc79a7", "#d55e00"


def subplots(*counts: int, **options: Any) -> Any:
    """As pyplot's, in the pages' style."""
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
    return pyplot.subplots(*counts, **options)


def svg(figure: Any, description: str) -> str:
    """`description` stands in its metadata: what it was drawn from."""
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Description": description})
    text = out.getvalue().replace(INK, "currentColor")
    return re.sub(r"(<svg [^>]*>)", rf"\1{STYLE}", text, count=1)
