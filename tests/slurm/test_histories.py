"""Many histories of a simulated Slurm: whatever dies or comes twice, one owner commits, and no run is lost or revived."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable

import pytest

from tests.slurm.simulated import Simulation, outside

__all__ = ["outside"]

HISTORIES = int(os.environ.get("OUTLAST_HISTORIES", "1000"))  # of each kind; a nightly run takes 50,000


@pytest.mark.parametrize("continue_by", ["chain", "array", "requeue"])
def test_no_run_is_lost_run_twice_or_revived(continue_by: str, outside: Callable[[Simulation], None]) -> None:
    seen: Counter[str] = Counter()
    for seed in range(HISTORIES):
        sim = Simulation(seed, continue_by)
        outside(sim)
        sim.live()
        seen["done" if sim.run.done else str((sim.run.cancelled or {"cause": "cancelled, unnoted"})["cause"])] += 1
        seen.update(event for event in ("dies", "zombie", "resumes") if any(event in line for line in sim.log))
        seen["fallback"] += sim.run.memory["fallbacks"] > 0
    # The histories were eventful: the properties were tried, not only never met.
    wanted = ("done", "cancel", "stop", "no progress", "dies", "zombie", "fallback")
    assert min(seen[what] for what in wanted) > HISTORIES / 500, seen
    assert seen["resumes"] < HISTORIES / 4, seen  # of those that died, a supervisor alone or too early
