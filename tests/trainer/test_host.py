"""What a process that trains on a CPU does with the memory that a step frees."""

from __future__ import annotations

import subprocess
import sys

FAULTS = """
import resource, sys, torch
from trainer.host import keep_freed_memory
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def step():
    return sum(float(torch.ones(size // 4)[0]) for size in (4 << 20, 40 << 20, 400 << 20))
def per_step():
    counts = []
    for _ in range(9):
        before = faults()
        step()
        counts.append(faults() - before)
    return sorted(counts)[4]
plain = per_step()
keep_freed_memory()
print(plain, per_step())
"""


def test_what_a_step_frees_is_not_cleared_anew_for_the_next() -> None:
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    plain, kept = map(float, done.stdout.split())
    pages = (444 << 20) / 4096
    assert kept < pages / 100 < plain  # huge pages would make fewer of the plain ones
