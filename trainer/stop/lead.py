"""How long things take in this run: measured over all its attempts, not guessed."""

from __future__ import annotations

from statistics import fmean, median
from typing import Any

MARGIN = 2.0  # seconds; Slurm's KillWait (30 s on most sites) is the reserve
FIRST_SAVE_RATE = 200e6  # bytes a second, until a save was measured; a shared file system under load
COPY_RATE = 1e9  # bytes a second at which a rank sets its share aside, until that was measured
_RECENT = 200
_USUAL = 20  # of the last so many: a layout may have changed
_FEW = 5  # steps: the first ones of a run are slow


class LeadTime:
    """How long before the deadline the stop begins: p95 of two steps and a save, plus a margin.

    Two steps, since a vote is cast before a step and read after it: what comes right after a vote is heard by the next.
    On a GPU three: there the host launches a step before the last one is done.
    """

    def __init__(self, events: list[dict[str, Any]], on_gpu: bool = False) -> None:
        self._ahead = 3 if on_gpu else 2
        steps = [e for e in events if e.get("event") == "step"][-_RECENT:]
        self._steps = [e["seconds"] for e in steps]
        self._paces = [e["seconds"] + e.get("data_wait_seconds", 0.0) for e in steps]
        saves = [e for e in events if e.get("event") == "save"]
        self._saves = [e["seconds"] for e in saves][-_RECENT:]
        self._stalls = [e["stall"] for e in saves if "stall" in e and not e.get("leaving")][-_RECENT:]
        self._first_save = self._first_stall = 0.0
        self._allotted: float | None = None
        self.saving = False
        """A save is under way: a stop waits for it, and then makes its own."""

    def expect_checkpoint(self, size: int, ranks: int = 1, nodes: int = 1) -> None:
        """A checkpoint will have so many bytes, which so many ranks on so many nodes share: an estimate until one was
        measured."""
        self._first_save, self._first_stall = size / (FIRST_SAVE_RATE * nodes), size / ranks / COPY_RATE

    def allot(self, seconds: float | None) -> None:
        """So many are left from where this attempt begins to its deadline. What nobody has measured takes no more than
        half of them for a save, or a short job would never begin, and none would ever be measured."""
        if self._allotted is None:
            self._allotted = seconds

    def saw_step(self, seconds: float, waited: float = 0.0) -> None:
        """`waited`: for its batch, before."""
        self._steps = [*self._steps[1 - _RECENT :], seconds]
        self._paces = [*self._paces[1 - _RECENT :], seconds + waited]

    def saw_save(self, seconds: float, stall: float | None = None) -> None:
        """From its begin until it is durable; and for how long of that training waited: None where it was to end."""
        self._saves = [*self._saves[1 - _RECENT :], seconds]
        if stall is not None:
            self._stalls = [*self._stalls[1 - _RECENT :], stall]

    def seconds(self) -> float:
        unmeasured = self._first_save if self._allotted is None else min(self._first_save, self._allotted / 2)
        save = percentile_95(self._saves) if self._saves else unmeasured
        return self._ahead * self.step_seconds() + (1 + self.saving) * save + MARGIN

    def step_seconds(self) -> float:
        """p95; 0 before the first step."""
        return percentile_95(self._steps)

    def pace(self) -> float:
        """Seconds from a usual step to the next; 0 before some were seen."""
        return median(self._paces[-_USUAL:]) if len(self._paces) >= _FEW else 0.0

    def fastest_save(self) -> float:
        """Seconds; 0 before the first save."""
        return min(self._saves, default=0.0)

    def written(self) -> float:
        """Seconds of a usual save; 0 before the first one."""
        return fmean(self._saves[-_USUAL:]) if self._saves else 0.0

    @property
    def stalled(self) -> bool:
        """Training has waited at a save: `stall` is no estimate any more."""
        return bool(self._stalls)

    def stall(self) -> float:
        """Seconds for which training waits at a usual save."""
        return fmean(self._stalls[-_USUAL:]) if self._stalls else self._first_stall


def percentile_95(values: list[float]) -> float:
    """The value that 95 % do not exceed; 0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))] if ordered else 0.0
