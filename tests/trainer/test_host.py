"""What a process that trains on a CPU does with the memory that a step frees, and what it knows of the CPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from trainer.host import multiplies_bf16

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


@pytest.mark.parametrize(
    ("cpuinfo", "it_does"),
    [
        ("processor : 0\nflags\t\t: fpu avx2 avx512f avx512_bf16 avx512vl\n", True),
        ("Features\t: fp asimd asimddp i8mm bf16\n", True),
        ("flags\t\t: fpu avx2 avx512f avx512_vnni avx512vl\n", False),
        (None, True),
    ],
)
def test_whether_the_cpu_has_instructions_for_bf16(cpuinfo: str | None, it_does: bool, tmp_path: Path) -> None:
    """Where nobody can know, nothing is advised."""
    if cpuinfo is not None:
        (tmp_path / "proc").mkdir()
        (tmp_path / "proc/cpuinfo").write_text(cpuinfo)
    assert multiplies_bf16(tmp_path) == it_does
