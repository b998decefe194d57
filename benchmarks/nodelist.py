"""From Slurm's node list to a hostfile and to the place of every rank, without asking Slurm."""

from __future__ import annotations

import statistics
import time

from benchmarks.rows import Row
from slurm import nodelist
from slurm.node import hostfile

NODES, GPUS, RUNS = 1000, 8, 21
GOAL = 15  # ms
NODELIST = "gpu[0001-0400],r[01-20]c[1-2]n[01-15]"


def measure(quick: bool) -> list[Row]:
    name = f"hostfile and rank map of {NODES} nodes x {GPUS} ranks"
    taken = 1000 * statistics.median(_once() for _ in range(RUNS))
    return [Row(name, "ms", taken, goal=f"at most {GOAL} ms", met=taken <= GOAL)]


def _once() -> float:
    began = time.perf_counter()
    hosts = nodelist.expand(NODELIST)
    text = hostfile.text(hosts, GPUS)
    places = [(host, local_rank) for host in hosts for local_rank in range(GPUS)]  # by rank
    seconds = time.perf_counter() - began
    assert len(hosts) == NODES == text.count("\n") and places[NODES * GPUS - GPUS + 1] == (hosts[-1], 1)
    return seconds
