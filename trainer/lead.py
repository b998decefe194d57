"""How long before the deadline the stop begins: measured over all attempts of the run, not guessed."""

from __future__ import annotations

from typing import Any

MARGIN = 2.0  # seconds; Slurm's KillWait (30 s on most sites) is the reserve
FIRST_SAVE_RATE = 200e6  # bytes a second, until a save was measured; a shared file system under load
_RECENT = 200


class LeadTime:
    """p95 of two steps and a save, plus a margin: a vote is read up to a step after it was cast."""

    def __init__(self, events: list[dict[str, Any]], checkpoint_bytes: int) -> None:
        self._steps = [e["seconds"] for e in events if e.get("event") == "step"][-_RECENT:]
        self._saves = [e["seconds"] for e in events if e.get("event") == "save"][-_RECENT:]
        self._first_save = checkpoint_bytes / FIRST_SAVE_RATE

    def saw_step(self, seconds: float) -> None:
        self._steps = [*self._steps[-_RECENT:], seconds]

    def saw_save(self, seconds: float) -> None:
        self._saves = [*self._saves[-_RECENT:], seconds]

    def seconds(self) -> float:
        save = percentile_95(self._saves) if self._saves else self._first_save
        return 2 * percentile_95(self._steps) + save + MARGIN


def percentile_95(values: list[float]) -> float:
    """The value that 95 % do not exceed; 0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))] if ordered else 0.0
