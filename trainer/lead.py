"""How long things take in this run: measured over all its attempts, not guessed."""

from __future__ import annotations

from typing import Any

MARGIN = 2.0  # seconds; Slurm's KillWait (30 s on most sites) is the reserve
FIRST_SAVE_RATE = 200e6  # bytes a second, until a save was measured; a shared file system under load
_RECENT = 200


class LeadTime:
    """How long before the deadline the stop begins: p95 of two steps and a save, plus a margin.

    Two steps, since a vote is cast before a step and read after it: what comes right after a vote is heard by the next.
    On a GPU three: there the host launches a step before the last one is done.
    """

    def __init__(self, events: list[dict[str, Any]], on_gpu: bool = False) -> None:
        self._ahead = 3 if on_gpu else 2
        self._steps = [e["seconds"] for e in events if e.get("event") == "step"][-_RECENT:]
        self._saves = [e["seconds"] for e in events if e.get("event") == "save"][-_RECENT:]
        self._first_save = 0.0
        self.saving = False
        """A save is under way: a stop waits for it, and then makes its own."""

    def expect_checkpoint(self, size: int) -> None:
        """A checkpoint will have so many bytes: an estimate until one was measured."""
        self._first_save = size / FIRST_SAVE_RATE

    def saw_step(self, seconds: float) -> None:
        self._steps = [*self._steps[1 - _RECENT :], seconds]

    def saw_save(self, seconds: float) -> None:
        self._saves = [*self._saves[1 - _RECENT :], seconds]

    def seconds(self) -> float:
        save = percentile_95(self._saves) if self._saves else self._first_save
        return self._ahead * self.step_seconds() + (1 + self.saving) * save + MARGIN

    def step_seconds(self) -> float:
        """p95; 0 before the first step."""
        return percentile_95(self._steps)

    def fastest_save(self) -> float:
        """Seconds; 0 before the first save."""
        return min(self._saves, default=0.0)


def percentile_95(values: list[float]) -> float:
    """The value that 95 % do not exceed; 0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))] if ordered else 0.0
