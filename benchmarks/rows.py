"""What a benchmark hands back: rows, and how they read as a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Self

HEAD = ("name", "outlast", "peer", "limit", "ratio", "goal", "met")
OPEN = ("MISSED", "missing")
"""Verdicts that ask for a cause."""


@dataclass(frozen=True)
class Row:
    """One figure of Outlast, beside a peer's or a limit."""

    name: str
    unit: str
    outlast: float | None = None
    peer_name: str = ""
    peer: float | None = None
    limit_name: str = ""
    limit: float | None = None
    """What nothing of this kind can beat on this machine."""
    ratio: float | None = None
    """Times ahead of the peer: above 1 is better, whatever the unit."""
    goal: str = ""
    """In words; empty: nothing to reach."""
    met: bool | None = None
    """None: there is no goal, or a figure is missing."""
    cause: str = ""
    """Why the goal is missed, or why a figure is missing."""

    def at_least(self, times: float) -> Self:
        """This many times less than the peer."""
        ratio = self.peer / self.outlast if self.peer is not None and self.outlast else None
        return replace(self, ratio=ratio, goal=f"at least {times:g}x", met=None if ratio is None else ratio >= times)


def table(rows: Sequence[Row]) -> str:
    """Markdown that also reads well in a terminal; below it why goals were missed and figures are missing."""
    cells = [HEAD, *map(_cells, rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(HEAD))]
    lines = [_line(row, widths) for row in cells]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join([*lines, *_causes(rows)]) + "\n"


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.name,
        _figure(row.outlast, row.unit),
        " ".join(filter(None, [row.peer_name, _figure(row.peer, row.unit)])),
        " ".join(filter(None, [row.limit_name, _figure(row.limit, row.unit)])),
        "" if row.ratio is None else f"{_digits(row.ratio)}x",
        row.goal,
        verdict(row),
    )


def verdict(row: Row) -> str:
    if row.met is None:
        return "missing" if row.goal else ""
    return "met" if row.met else "MISSED"


def _figure(value: float | None, unit: str) -> str:
    return "" if value is None else f"{_digits(value)} {unit}".rstrip()


def _digits(value: float) -> str:
    """Counts stand whole; of a measurement three digits are all that a shared machine can give."""
    return f"{value:,.0f}" if isinstance(value, int) or value >= 100 else f"{value:#.3g}"


def _line(cells: Iterable[str], widths: Iterable[int]) -> str:
    return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"


def _causes(rows: Iterable[Row]) -> list[str]:
    """Rows that share a cause share its line."""
    titles: dict[str, list[str]] = {}
    for row in rows:
        if verdict(row) in OPEN:
            title = f"{row.name} against {row.peer_name}" if row.peer_name else row.name
            titles.setdefault(row.cause or "cause not found yet", []).append(title)
    return ["", *(f"- {'; '.join(titled)}: {cause}" for cause, titled in titles.items())] if titles else []
