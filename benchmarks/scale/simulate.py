"""A month of one run on 1 to 1,024 nodes, interrupted at published rates: a simulation, no measurement."""

from __future__ import annotations

import random
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from benchmarks.goodput.model import DAY, Saves, Site, interval

Kind = Literal["waiting", "requeue", "by hand"]
"""The next job waits in the queue already (chain, array); the same job comes again; somebody queues a new one."""


@dataclass(frozen=True)
class Place:
    """What interrupts a run, and what that costs. Seconds, where nothing else is said."""

    failures: float = 6.5 / 1000
    """Of a node, a day: Meta's RSC-1 (2410.21680)."""
    lost_nodes: float = 0.5
    """Share of failures after which the node is gone, and with it the allocation, if no spare stands by: assumed."""
    preemptions: float = Site.preemptions_a_day
    """Of a job, a day: 10 % of RSC-1's jobs."""
    walltime: float = Site.walltime
    notice: float = Site.notice
    """Until a hang is seen; a crash is seen at once."""
    hangs: float = 0.1
    """Share of failures that hang: 9.9 % of the explicit ones at ByteDance (ByteRobust)."""
    start: float = Site.imports + 50.0
    """Imports from Lustre (OLCF, Frontier) and the load of the checkpoint."""
    waiting: float = 0.2
    """Between two jobs, where the second waits: measured here (benchmarks/results, goodput)."""
    requeue: float = 121.0
    """Until a requeued job may start: a stock Slurm, measured here."""
    free_node: float = 1800.0
    """Mean wait for a node in place of a lost one, or for preempted ones: assumed."""
    queue: float = 4 * 3600.0
    """Mean wait of a new job: assumed; busy sites have days."""


SAVES = Saves(8.03e9 * 12, stall=0.78)
"""An 8B model: weights and moments in fp32, 50 s to be written."""


@dataclass
class Month:
    """What became of it, in seconds of the whole allocation."""

    steps: float = 0.0
    allocated: float = 0.0
    wall: float = 0.0
    interruptions: int = 0

    @property
    def goodput(self) -> float:
        """Share of the allocated seconds that are steps; spares are allocated too."""
        return self.steps / self.allocated

    @property
    def pace(self) -> float:
        """Share of all seconds, those in the queue too."""
        return self.steps / self.wall


def month(
    nodes: int,
    kind: Kind = "waiting",
    every: float | None = None,
    spares: int = 0,
    place: Place = Place(),
    seed: int = 0,
    days: float = 30,
) -> Month:
    """`every`: seconds between two saves; None: Young's interval. `spares`: nodes that stand by in the allocation."""
    draw, out = random.Random(seed), Month()
    failing = nodes * place.failures / DAY
    every = max(every or interval(SAVES.stall, 1 / failing), SAVES.whole)
    left, ends = spares, place.walltime
    while out.wall < days * DAY:
        # One start of the ranks, inside a job that ends at `ends`.
        failure, preemption = draw.expovariate(failing), draw.expovariate(place.preemptions / DAY)
        limit = ends - place.start - SAVES.whole
        trained = min(failure, preemption, max(0.0, limit))
        spent = place.start + trained
        kept = trained * (1 - SAVES.stall / every)
        wait, same_job = 0.0, False
        if trained == failure:
            kept -= min(kept, draw.uniform(0, every) + SAVES.whole * draw.random())  # the newest may not be durable yet
            spent += place.notice if draw.random() < place.hangs else 0.0
            node_lost = draw.random() < place.lost_nodes
            same_job = not node_lost or left > 0
            left -= node_lost and left > 0
            wait = 0.0 if same_job else draw.expovariate(1 / place.free_node)
        else:
            spent += SAVES.whole
            wait = draw.expovariate(1 / place.free_node) if trained == preemption else 0.0
        if not same_job:
            wait += {"waiting": place.waiting, "requeue": place.requeue, "by hand": 0.0}[kind]
            wait = max(wait, draw.expovariate(1 / place.queue)) if kind == "by hand" else wait
            left = spares
        out.steps += kept
        out.allocated += spent * (nodes + spares) / nodes
        out.wall += spent + wait
        out.interruptions += 1
        ends = ends - spent if same_job and ends - spent > place.start + SAVES.whole else place.walltime
    return out


def mean_of(measure: Literal["goodput", "pace"], months: list[Month]) -> float:
    return fmean(getattr(one, measure) for one in months)
