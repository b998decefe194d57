"""What this machine gives at this moment: a figure means something only beside it."""

from __future__ import annotations

import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import peers

SIZE = 2048  # of the square matrices
BYTES = 256 << 20  # past every cache


def describe() -> dict[str, Any]:
    """Names and medians of a few seconds' measurement."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load": load(),
        "python_ms": round(1000 * _median(_start("-c", "pass"), 21), 1),
        "python_without_site_ms": round(1000 * _median(_start("-I", "-S", "-c", "pass"), 21), 1),
        **_arithmetic(),
        "write_fsync_gb_s": round(BYTES / _median(_write(os.urandom(BYTES))) / 1e9, 2),
    }


def load() -> float:
    """Processes that want a core, the average of the last minute."""
    return round(os.getloadavg()[0], 2)


def versions() -> dict[str, str]:
    """Figures of two runs compare when these are the same."""
    return {
        "outlast": _commit() or version("outlast"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        **peers.versions(),
    }


def _commit() -> str:
    """Results are written into the checkout: they alone do not make it another one."""
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results")
    return _git("rev-parse", "--short=10", "HEAD") + ("+changes" if changed else "")


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=peers.ROOT, capture_output=True, text=True).stdout.strip()


def _arithmetic() -> dict[str, float]:
    import torch  # here, so that the runner stays small until it measures

    a, b = torch.rand(SIZE, SIZE), torch.rand(SIZE, SIZE)
    source, target = torch.ones(BYTES, dtype=torch.uint8), torch.ones(BYTES, dtype=torch.uint8)
    return {
        "gemm_fp32_gflop_s": round(2 * SIZE**3 / _median(lambda: torch.mm(a, b)) / 1e9, 1),
        "memcpy_gb_s": round(BYTES / _median(lambda: target.copy_(source)) / 1e9, 2),
    }


def _start(*words: str) -> Callable[[], object]:
    return lambda: subprocess.run([sys.executable, *words], check=True)


def _write(data: bytes) -> Callable[[], None]:
    """To the disk of the checkout, since /tmp may be memory."""

    def once() -> None:
        with tempfile.TemporaryFile(dir=peers.ROOT, buffering=0) as file:
            file.write(data)
            os.fsync(file.fileno())

    return once


def _median(work: Callable[[], object], rounds: int = 5) -> float:
    """Seconds, after a first time that warms up."""
    times = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.+)", info.read_text()) if info.exists() else None
    return found[1] if found else platform.machine()
