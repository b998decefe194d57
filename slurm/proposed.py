"""The time limit of a job and the GPU-hours of its run where nobody names them: from how long it is planned to take."""

from __future__ import annotations

import dataclasses
import math
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

from msgspec.structs import replace

from slurm import commands
from slurm.config import JobConfig
from slurm.sites.cluster import Cluster
from slurm.submission import Submission
from slurm.walltime import Walltime

Check = Callable[[str, int, int, str, Path, bool], tuple[float, str] | None]
"""Of a resolved config, nodes, GPUs of each and their kind, the run's folder, and whether what cannot fit is submitted
all the same: seconds of training with a margin, and what they are. None: not known. Raises ConfigError."""

EACH = 180.0
"""Seconds of an attempt in which it does not train: its start and its last save, as the plan assumes them."""
LEAST = 1800.0
"""Seconds of a limit: EACH is a tenth of it."""
LONGEST = 86_400.0
"""Seconds of a limit where nobody says what the longest is."""
_UNIT = 300.0  # seconds, to which a limit is rounded up


def may_be_planned(ready: Submission) -> bool:
    """It trains, and the profile says on which GPUs."""
    return ready.config_text is not None and ready.cluster.profile.gpu is not None


def planned(ready: Submission, check: Check, args: Namespace) -> Submission:
    """Checked against the plan; with a time limit and a limit of GPU-hours, and what is said of them, where nobody has
    given one. Raises ConfigError."""
    job, kind = ready.job, ready.cluster.profile.gpu
    assert ready.config_text is not None and kind is not None
    asked = check(ready.config_text, job.nodes, job.gpus_per_node, kind, ready.run.path, args.force)
    if asked is None or args.here or job.cluster == "local":
        return ready
    seconds, said = asked
    longest = job.walltime.total_seconds() if job.walltime else _longest(job, ready.cluster)
    attempts, limit = divided(seconds, longest)
    lines = []
    if job.walltime is None:
        job = replace(job, walltime=Walltime(seconds=max(limit, job.time_min.total_seconds() if job.time_min else 0)))
        times = f", in {attempts} jobs" if attempts > 1 else ""
        lines.append(f"time limit {job.walltime}: {said}{times}; another: --walltime")
    if job.max_gpu_hours is None:
        job = replace(job, max_gpu_hours=math.ceil(2 * attempts * limit / 3600 * job.world_size))
        lines.append(f"ends after {job.max_gpu_hours:,} GPU-hours: twice what the plan asks for; --max-gpu-hours")
    return dataclasses.replace(ready, job=job, proposed="\n".join(lines))


def divided(seconds: float, longest: float) -> tuple[int, float]:
    """The fewest attempts of one length that train for so long, and the seconds of each: a shorter job finds a gap
    sooner, one more attempt is one more wait in the queue."""
    attempts = max(1, math.ceil(seconds / max(longest - EACH, longest / 2)))
    each = math.ceil((seconds / attempts + EACH) / _UNIT) * _UNIT
    return attempts, min(max(each, LEAST), longest)


def _longest(job: JobConfig, cluster: Cluster) -> float:
    """Seconds that all of the job's partitions, its QOS and the profile allow."""
    limits = [choice.max_walltime for choice in cluster.chosen(job.partition)]
    limits.append(cluster.profile.max_walltime)
    if job.qos and cluster.site is not None and cluster.site.accounts:
        limits.append(commands.qos_max_walltime(job.qos))
    return min((limit.total_seconds() for limit in limits if limit), default=LONGEST)
