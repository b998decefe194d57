"""The goodput of a 70B run on many GPUs, from published rates and our measured gap: arithmetic, no measurement."""

from __future__ import annotations

import math
from dataclasses import dataclass

DAY = 86400.0


@dataclass(frozen=True)
class Site:
    """A 70B run on 64 H100 of a Slurm site, and what interrupts it."""

    gpus: int = 64
    """As NeMo AutoModel trains Llama-3-70B (its performance page)."""
    gpu_hours_between_failures: float = 54 * 24 * 16384 / 419
    """50,700: 419 unexpected interruptions in 54 days on 16,384 H100 (The Llama 3 Herd of Models, 2407.21783)."""
    preemptions_a_day: float = 0.1
    """Of a job of a day: 10 % of the jobs of Meta's RSC-1 were preempted (2410.21680)."""
    walltime: float = DAY
    """Seconds of one job: the limit of most public GPU partitions."""
    notice: float = 300.0
    """Seconds until a failure is seen: our watchdog's shortest limit; a crash is seen at once."""
    imports: float = 51.0
    """Seconds until torch is imported by 64 ranks from Lustre (OLCF's page on Python environments, Frontier)."""


@dataclass(frozen=True)
class Saves:
    checkpoint_bytes: float = 70.55e9 * 12
    """Weights and two moments in fp32."""
    bytes_a_second: float = 70.55e9 * 12 / 436
    """1.9 GB/s over all ranks: Llama-3-70B took 436 s in the background (PyTorch blog, 6x faster async checkpointing,
    2025); the 50 s of an 8B model on 64 H100 (TorchTitan's paper) are the same rate."""
    stall: float = 0.78
    """Seconds for which training waits at a save: the staging of that very run (the same blog). Outlast's, on GPUs, was
    not measured."""

    @property
    def whole(self) -> float:
        """Seconds until a save is on disk; a load takes as long."""
        return self.checkpoint_bytes / self.bytes_a_second


def interval(stall: float, between_failures: float) -> float:
    """Seconds between two saves that lose least (Young 1974; Daly 2006 adds terms of a higher order)."""
    return math.sqrt(2 * stall * between_failures)


def goodput(site: Site, saves: Saves, gap: float) -> float:
    """The share of allocated seconds that are steps, all losses small. `gap`: measured seconds between two attempts
    beyond imports and load.

    A failure costs half an interval, the time until it is seen, and a restart; a time limit or a preemption costs the
    whole save, since nothing goes on beside it, and a restart.
    """
    between_failures = site.gpu_hours_between_failures * 3600 / site.gpus
    every = max(interval(saves.stall, between_failures), saves.whole)  # one save at a time
    restart = gap + site.imports + saves.whole
    lost = saves.stall / every
    lost += (every / 2 + site.notice + restart) / between_failures
    lost += (saves.whole + restart) * (1 / site.walltime + site.preemptions_a_day / DAY)
    return max(0.0, 1 - lost)
