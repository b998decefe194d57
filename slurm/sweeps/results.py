"""What a sweep has found: its runs in one table, the best first; in a list of all runs it is one line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from durable import read_tail
from slurm.rundir import RunDir, Sweep
from slurm.watch import status as statuses
from slurm.watch.run_status import RunStatus

LAST_STEPS = 10
"""The loss of one step is noise: their mean is a run's."""
RECENT = 1 << 18
"""Bytes of a run's events that tell its losses: a thousand steps."""


@dataclass(frozen=True)
class Row:
    status: RunStatus
    values: dict[str, Any]
    loss: float | None
    """Mean training loss of the last steps."""
    held_out: float | None
    """Of the newest evaluation."""

    def as_json(self) -> dict[str, Any]:
        told = {key: getattr(self.status, key) for key in ("name", "state", "why", "step", "folder")}
        return {**told, "values": self.values, "loss": self.loss, "held_out": self.held_out}


@dataclass(frozen=True)
class Results:
    sweep: Sweep
    rows: list[Row]
    """The best first, then those that are not done."""

    @property
    def measure(self) -> str | None:
        """What the runs that are done are compared by; None: none has come so far."""
        done = [row for row in self.rows if row.status.state == "done"]
        return next(
            (name for name in ("held_out", "loss") if any(getattr(row, name) is not None for row in done)), None
        )

    @property
    def best(self) -> Row | None:
        return self.rows[0] if self.measure else None

    def as_json(self) -> dict[str, Any]:
        best = self.best.status.name if self.best else None
        return {
            "sweep": self.sweep.name,
            "best": best,
            "by": self.measure,
            "runs": [row.as_json() for row in self.rows],
        }

    def __str__(self) -> str:
        keys = list(dict.fromkeys(key for row in self.rows for key in row.values))
        head = ["", *keys, "state", "step", "loss", "held-out", "run"]
        cells = [self._cells(row, keys) for row in self.rows]
        words = "held-out loss" if self.measure == "held_out" else f"training loss, mean of {LAST_STEPS} steps"
        told = [f"* the best of those that are done, by its {words}"] if self.measure else []
        hurt = [row.status for row in self.rows if row.status.state in ("ended", "interrupted")]
        told += [f"{one.name}: {one.state}: {one.why}; {one.do}" for one in hurt]
        lines = [
            statuses.summary(self.sweep.name, [row.status for row in self.rows]),
            *_table([head, *cells], left={0, len(head) - 1}),
        ]
        return "\n".join([*lines, *told])

    def _cells(self, row: Row, keys: Sequence[str]) -> list[str]:
        values = [_shown(row.values[key]) if key in row.values else "" for key in keys]
        losses = ["" if loss is None else f"{loss:.4f}" for loss in (row.loss, row.held_out)]
        mark = "*" if row is self.best else ""
        return [mark, *values, row.status.state, str(row.status.step), *losses, row.status.name]


def of(sweep: Sweep) -> Results:
    """How a sweep stands, from its folders and one squeue."""
    entries = {entry["run"]: entry for entry in sweep.entries() if (sweep.path / entry["run"] / "job.yaml").exists()}
    found = statuses.status([RunDir(sweep.path / name) for name in entries])
    unsorted = Results(sweep, [_row(one, entries[one.name]["values"]) for one in found])
    measure = unsorted.measure

    def rank(row: Row) -> tuple[bool, float]:
        loss = getattr(row, measure) if measure and row.status.state == "done" else None
        return loss is None, loss or 0.0

    return Results(sweep, sorted(unsorted.rows, key=rank))


def _row(one: RunStatus, values: dict[str, Any]) -> Row:
    events, _ = read_tail(RunDir(Path(one.folder)).events, RECENT)
    losses = [event["loss"] for event in events if event.get("event") == "step" and event["loss"] is not None]
    held_out = [event["loss"] for event in events if event.get("event") == "evaluation"]
    last = losses[-LAST_STEPS:]
    return Row(one, values, sum(last) / len(last) if last else None, held_out[-1] if held_out else None)


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _table(rows: Sequence[Sequence[str]], left: set[int]) -> list[str]:
    """Lines of aligned columns; those of `left` begin together, the others end together."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = zip(row, widths, strict=True)
        lines.append("  ".join(c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(cells)).rstrip())
    return lines
