"""Where the seconds of a run went: arithmetic over what it told and what Slurm stamped. Times are unix seconds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

CAUSES = ("stop and save", "queue", "launch", "imports and load", "replayed steps")


@dataclass
class Attempt:
    """One start of the ranks, as rank 0 saw it."""

    start: float
    """Its process began."""
    ready: float | None = None
    """Imports, model and checkpoint are there: the first step begins."""
    told: list[tuple[int, float]] = field(default_factory=list)
    """Number of each step, counted from 1, and when it was over."""


@dataclass
class Run:
    attempts: list[Attempt] = field(default_factory=list)
    held: list[tuple[float, float]] = field(default_factory=list)
    """When its jobs had the node, by Slurm's prolog and epilog."""
    urgent: list[tuple[float, float]] = field(default_factory=list)
    """When the jobs that preempted it had the node."""
    asked: list[float] = field(default_factory=list)
    """When those were submitted."""
    done: bool = False
    words: str = ""
    """Why it did not finish."""

    @classmethod
    def of(cls, tree: dict[str, Any]) -> Run:
        """From its JSON."""
        attempts = [Attempt(**one | {"told": [(step, when) for step, when in one["told"]]}) for one in tree["attempts"]]
        spans = {key: [(begin, end) for begin, end in tree[key]] for key in ("held", "urgent")}
        return cls(**tree | spans | {"attempts": attempts})

    def tree(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def allocated(self) -> float:
        """Seconds in which its jobs had the node. Slurm's delay before a requeued job may start is none of them."""
        return sum(end - begin for begin, end in self.held)

    @property
    def wall(self) -> float:
        """Seconds from its first job's start to its last one's end."""
        return self.held[-1][1] - self.held[0][0]

    @property
    def step_seconds(self) -> float:
        """Median from one step's end to the next one's."""
        return statistics.median(
            after - before for one in self.attempts for (_, before), (_, after) in pairwise(one.told)
        )


@dataclass(frozen=True)
class Loss:
    """Seconds lost at one preemption."""

    stop: float
    """From the end of its last step until the node was free: it noticed, saved and left, or was killed."""
    queue: float
    """From the node's being free, of the urgent job as well, until the next job had it. Nobody pays for these."""
    launch: float
    """Until the rank's process began."""
    load: float
    """Until its first step began."""
    replayed: float
    """Steps that were done and had to be done again, at the ideal pace."""
    steps: int
    """How many those were."""

    @property
    def causes(self) -> dict[str, float]:
        return dict(zip(CAUSES, (self.stop, self.queue, self.launch, self.load, self.replayed), strict=True))

    @property
    def gap(self) -> float:
        """On an idle node, beyond imports and load."""
        return self.queue + self.launch


def goodput(run: Run, steps: int, ideal: float) -> float:
    """The share of the allocated seconds that `steps` steps of `ideal` seconds account for."""
    return steps * ideal / run.allocated


def losses(run: Run, ideal: float) -> list[Loss]:
    """One for each preemption after which the run went on."""
    found = [_loss(run, asked, ideal) for asked in run.asked]
    return [loss for loss in found if loss]


def _loss(run: Run, asked: float, ideal: float) -> Loss | None:
    before = [one for one in run.attempts if one.start < asked and one.told]
    after = [one for one in run.attempts if one.start > asked and one.told]
    ended = [end for _, end in run.held if end > asked]
    if not (before and after and ended):
        return None
    old, new = before[-1], after[0]
    free = max([ended[0], *(end for begin, end in run.urgent if asked < begin < new.start)])
    began = max(begin for begin, _ in run.held if begin < new.start)
    ready = new.ready or new.told[0][1]
    again = max(0, old.told[-1][0] - (new.told[0][0] - 1))
    return Loss(
        stop=ended[0] - old.told[-1][1],
        queue=began - free,
        launch=new.start - began,
        load=ready - new.start,
        replayed=again * ideal,
        steps=again,
    )


def typical(found: Sequence[Loss], cause: str) -> float:
    """Seconds of the median event: on a machine with neighbours one import in five takes three times as long."""
    return statistics.median(loss.causes[cause] for loss in found)
