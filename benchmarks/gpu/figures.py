"""What a part of the benchmark hands back: figures of the scoreboard, as they are kept and as they read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from benchmarks.rows import Row, table

REDUCED = "reduced, CPU"


@dataclass(frozen=True)
class Figure(Row):
    """One figure of a row of the scoreboard."""

    row: str = ""
    """B1 to B10."""
    note: str = ""
    """How it was measured, and what else was found on the way."""
    sm_mhz: float | None = None
    """Median clock of the GPU since the last figure."""
    watts: float | None = None
    """Mean power of the GPU since the last figure."""

    def judged(self, goal: str, met: bool) -> Self:
        """Against a goal in words; without a figure there is nothing to judge."""
        return replace(self, goal=goal, met=met if self.outlast is not None else None)

    def at_most(self, limit: float) -> Self:
        value = self.outlast
        return self.judged(f"at most {limit:g} {self.unit}".rstrip(), value is not None and value <= limit)

    def faster(self, times: float) -> Self:
        """Where more is better (tokens/s): so many times the peer's figure."""
        ratio = self.outlast / self.peer if self.outlast and self.peer else None
        met = None if ratio is None else ratio >= times
        return replace(self, ratio=ratio, goal=f"at least {times:g}x", met=met)

    def reduced(self) -> Self:
        """Of tiny shapes nothing is met or missed."""
        return replace(self, met=None, cause=self.cause or (REDUCED if self.goal else ""))


def tree(figure: Figure) -> dict[str, Any]:
    """As it is kept."""
    peer = {"name": figure.peer_name, "figure": _kept(figure.peer)} if figure.peer_name else None
    limit = {"name": figure.limit_name, "figure": _kept(figure.limit)} if figure.limit_name else None
    found = {
        "row": figure.row,
        "name": figure.name,
        "figure": _kept(figure.outlast),
        "unit": figure.unit,
        "goal": figure.goal,
        "met": figure.met,
        "peer": peer,
        "limit": limit,
        "ratio": _kept(figure.ratio),
        "reason": figure.cause,
        "note": figure.note,
        "sm_mhz": figure.sm_mhz,
        "watts": figure.watts,
    }
    optional = ("limit", "ratio", "reason", "note")
    return {key: value for key, value in found.items() if value not in (None, "") or key not in optional}


def figure_of(kept: dict[str, Any]) -> Figure:
    """Back from what `tree` made."""
    peer, limit = kept.get("peer") or {}, kept.get("limit") or {}
    return Figure(
        name=kept["name"],
        unit=kept["unit"],
        outlast=kept["figure"],
        peer_name=peer.get("name", ""),
        peer=peer.get("figure"),
        limit_name=limit.get("name", ""),
        limit=limit.get("figure"),
        ratio=kept.get("ratio"),
        goal=kept["goal"],
        met=kept["met"],
        cause=kept.get("reason", ""),
        row=kept["row"],
        note=kept.get("note", ""),
        sm_mhz=kept["sm_mhz"],
        watts=kept["watts"],
    )


def _kept(value: float | None) -> float | None:
    """No digits that are noise."""
    return float(f"{value:.5g}") if isinstance(value, float) else value


def shown(figures: Sequence[Figure]) -> str:
    """A table, and below it why figures are missing and how the others came to be."""
    rows = [replace(figure, name=f"{figure.row} {figure.name}") for figure in figures]
    without = [f"- {row.name}: {row.cause}" for row in rows if row.outlast is None and not row.goal and row.cause]
    notes = [f"- {row.name}: {row.note}" for row in rows if row.note]
    return table(rows) + "".join(f"{line}\n" for line in [*without, "", *notes])
