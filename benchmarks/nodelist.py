"""From Slurm's node list to a hostfile and to the place of every rank, without asking Slurm."""

from __future__ import annotations

import statistics
import time
from typing import Any

from slurm import hostfile, nodelist

NODES, GPUS, RUNS = 1000, 8, 21
GOAL = 0.015  # seconds
NODELIST = "gpu[0001-0400],r[01-20]c[1-2]n[01-15]"


def measure() -> list[dict[str, Any]]:
    name = f"hostfile and rank map of {NODES} nodes x {GPUS} ranks"
    return [{"name": name, "seconds": round(statistics.median(_once() for _ in range(RUNS)), 5), "goal": GOAL}]


def _once() -> float:
    began = time.perf_counter()
    hosts = nodelist.expand(NODELIST)
    text = hostfile.text(hosts, GPUS)
    places = [(host, local_rank) for host in hosts for local_rank in range(GPUS)]  # by rank
    seconds = time.perf_counter() - began
    assert len(hosts) == NODES == text.count("\n") and places[NODES * GPUS - GPUS + 1] == (hosts[-1], 1)
    return seconds


if __name__ == "__main__":
    for row in measure():
        print(f"{row['name']:<45} {1000 * row['seconds']:.2f} ms (goal {1000 * row['goal']:.0f} ms)")
