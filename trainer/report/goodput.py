"""Where a run's time went. Every second from its first word to its last belongs to one part: they sum to the whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

import timeline
from timeline import PARTS, QUEUE, START, STEPS
from trainer.records.history import Floats, Mask
from trainer.report.run import RUNNING, Attempt, Run

WORDS = {
    "steps": "optimizer steps that count",
    "evaluation": "evaluation on held-out data",
    "saves": "training waited for a checkpoint",
    "start": "start: imports, model, checkpoint",
    "lost": "lost: steps done again or cut off",
    "leaving": "leaving: export, exit, clean-up",
    "queue": "no nodes: in the queue, or stopped",
}


@dataclass(frozen=True)
class Spell:
    """A stretch of time between two attempts, or one attempt: seconds of each of PARTS."""

    start: float
    end: float
    attempt: Attempt | None
    parts: Floats
    """(parts,)."""


@dataclass(frozen=True)
class Split:
    spells: list[Spell]
    waited: float
    """Seconds of the steps in which there was no batch."""

    @property
    def parts(self) -> Floats:
        """Seconds, (parts,)."""
        return np.asarray(np.sum([spell.parts for spell in self.spells], axis=0))

    @property
    def wall(self) -> float:
        return self.spells[-1].end - self.spells[0].start

    @property
    def allocated(self) -> float:
        """Seconds in which the run had its nodes."""
        return float(self.parts.sum() - self.parts[QUEUE])

    @property
    def goodput(self) -> float:
        """Productive step seconds over allocated seconds."""
        return timeline.goodput(float(self.parts[STEPS]), self.allocated)

    def as_json(self) -> dict[str, Any]:
        parts = dict(zip(PARTS, self.parts.tolist(), strict=True))
        times = {"wall": self.wall, "allocated": self.allocated, "steps_without_data": self.waited}
        return {"goodput": self.goodput, "seconds": parts, **times}


def split(run: Run) -> Split:
    kept, spells = run.history.kept(), []
    cursor, before = run.submitted or run.attempts[0].start, None
    for attempt in run.attempts:
        start = max(cursor, attempt.start)
        if start > cursor:
            again = before is not None and before.starter == attempt.starter  # the same nodes wait for a new start
            gap = np.zeros(len(PARTS))
            gap[START if again else QUEUE] = start - cursor
            spells.append(Spell(cursor, start, None, gap))
        end = max(start, attempt.end)
        spells.append(Spell(start, end, attempt, _parts(run, attempt, kept, start, end)))
        cursor, before = end, attempt
    waited = run.history.numbers("data_wait_seconds")[kept]
    return Split(spells, float(np.nansum(waited)))


def _parts(run: Run, attempt: Attempt, kept: Mask, start: float, end: float) -> Floats:
    """Seconds of each part from `start` to `end`."""
    own = run.history.whole("epoch") == attempt.number
    times, steps = run.history.numbers("time")[own], run.history.whole("step")[own]
    counts = kept[own]
    if attempt is run.attempts[-1] and attempt.committed is not None:  # of an earlier one: where the next has resumed
        counts = counts & (steps <= attempt.committed)
    told = [event for event in run.history.others if event.get("epoch") == attempt.number]
    of_steps = list(zip(times.tolist(), steps.tolist(), counts.tolist(), strict=True))
    return np.array(timeline.split(of_steps, told, start, end, over=attempt.cause != RUNNING))
