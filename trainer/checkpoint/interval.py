"""When the next save is due. Rank 0 decides, and tells the others with its vote."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from trainer.records import events
from trainer.schema import Checkpoint
from trainer.stop.lead import LeadTime

if TYPE_CHECKING:  # the plan asks for an interval where there is no torch
    from trainer.runtime import Runtime

PRIOR = 24 * 3600.0  # seconds: what a young run is thought to know of a node, one interruption in a day
BUSY = 4  # of so much time at most one part is spent on writing: others use the file system too
_CHANGE = 1.25  # of an interval, from which on it is said again


@dataclass(frozen=True)
class Interval:
    """The interval at which the saves' cost and the work that interruptions lose are least together (Young 1974)."""

    stall: float
    """Seconds for which training waits at a save."""
    measured: bool
    """It was, and is no estimate."""
    written: float
    """Seconds from a save's begin until it is durable; 0: none was made yet."""
    step: float
    """Seconds of a step."""
    lost: int
    """Interruptions that lost work, over all attempts."""
    trained: float
    """Seconds, over all attempts."""
    nodes: int

    @property
    def between(self) -> float:
        """Seconds between two interruptions that lose work: the prior counts as one that was seen."""
        return (PRIOR / self.nodes + self.trained) / (1 + self.lost)

    @property
    def least(self) -> float:
        """Seconds: Young's."""
        return math.sqrt(2 * self.stall * self.between)

    @property
    def steps(self) -> int:
        return max(1, round(max(self.least, BUSY * self.written) / self.step))

    def __str__(self) -> str:
        costs = "costs" if self.measured else "is thought to cost"
        text = (
            f"saves every {self.steps:,} steps ({duration(self.steps * self.step)}): a save {costs} {self.stall:.2g} s "
            f"of training, an interruption that loses work comes every {duration(self.between)} "
            f"(prior {duration(PRIOR)} a node; {self.lost} seen in {duration(self.trained)})"
        )
        if BUSY * self.written > self.least:
            text += f"; it is written in {duration(self.written)}, which is to be a part of {BUSY} at most"
        return text


class Rhythm:
    """Rank 0's word counts. Steps, a time, or what was measured say when; the attempt's first save may come sooner."""

    def __init__(
        self,
        settings: Checkpoint,
        runtime: Runtime,
        step: int,
        lead: LeadTime,
        tell: Callable[..., None],
        clock: Callable[[], float] = time.monotonic,
        longest: float = math.inf,
    ) -> None:
        """The attempt goes on from `step`; `tell`: its voice; `longest`: seconds that a save may take."""
        self._settings, self._lead, self._tell, self._clock, self._longest = settings, lead, tell, clock, longest
        self._leads, self._nodes = runtime.leads, runtime.nodes
        before = events.read(runtime.run_dir) if runtime.leads else []
        here = {"event": "resume", "epoch": runtime.epoch, "step": step}  # told when this stands
        self._lost, self._trained = interruptions([*before, here])
        self._first = first_save(before, runtime.epoch, step) if runtime.cut_short else None
        if self._first is not None:
            text = f"the last attempt was cut before it had saved: this one saves after step {self._first}"
            tell("interval", step, text, first=self._first)
        self._said = 0.0
        self._began = clock()
        self.saves(step)

    def saves(self, step: int) -> None:
        """A save of this step begins, by whatever reason. One that fails is tried again when the next is due."""
        self._step, self._at = step, self._clock()

    def due(self, step: int) -> bool:
        """All save after this step, which comes next."""
        every, seconds = self._settings.every, self._settings.seconds
        if not self._leads or step == self._first:
            return self._leads
        if isinstance(every, int):
            return step % every == 0
        if self._lead.saving:  # one at a time: the next one would be waited for, under the watchdog
            return self._hangs(step)
        if seconds is not None:
            return self._clock() - self._at + self._lead.pace() >= seconds
        return step - self._step >= self._steps(step)

    def _hangs(self, step: int) -> bool:
        """The save under way. Beside the steps no watchdog sees it, and without another one due nobody would wait."""
        since = self._clock() - self._at
        if since > self._longest:
            text = (
                f"the checkpoint of step {self._step} is not written after {duration(since)}: the training waits for it"
            )
            self._tell("save_hangs", step, text, seconds=since)
        return since > self._longest

    def _steps(self, step: int) -> float:
        pace, lead = self._lead.pace(), self._lead
        if not pace:
            return math.inf
        trained = self._trained + self._clock() - self._began
        interval = Interval(lead.stall(), lead.stalled, lead.written(), pace, self._lost, trained, self._nodes)
        if not self._said / _CHANGE < interval.steps < self._said * _CHANGE:
            self._said = interval.steps
            self._tell("interval", step, str(interval), steps=interval.steps, seconds=interval.steps * pace)
        return interval.steps


def interruptions(before: list[dict[str, Any]]) -> tuple[int, float]:
    """How often an attempt went on below the step that the one before had come to, and the seconds of all steps.

    A stop that was saved loses nothing, and does not count.
    """
    resumed: dict[int, int] = {}
    reached: dict[int, int] = {}
    trained = 0.0
    for event in before:
        epoch = event.get("epoch", 0)
        if event.get("event") == "resume":
            resumed[epoch] = event["step"]
        elif event.get("event") == "step":
            reached[epoch] = max(event["step"], reached.get(epoch, 0))
            trained += event["seconds"] + event.get("data_wait_seconds", 0.0)
    return sum(reached.get(last, 0) > resumed[after] for last, after in pairwise(sorted(resumed))), trained


def first_save(before: list[dict[str, Any]], epoch: int, step: int) -> int | None:
    """The step after which this attempt saves first, whatever the interval says; None: the interval decides.

    An attempt that resumes where the last one did follows one that has saved nothing: it was preempted or killed before
    its save. So this one saves after half of the steps that that one came to, and one that is cut as short gets on.
    """
    last = [event for event in before if event.get("epoch") == epoch - 1]
    resumed = next((event["step"] for event in last if event["event"] == "resume"), None)
    if resumed != step:
        return None
    if any(event["event"] == "stop" for event in last) and not any(event["event"] == "step" for event in last):
        return None  # it was asked to leave before it had done anything
    reached: int = max((event["step"] for event in last if event["event"] == "step"), default=step)
    return step + max(1, (reached - step) // 2)


def duration(seconds: float) -> str:
    """In the unit that reads best."""
    for size, unit in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
