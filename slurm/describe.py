"""What a submission will be, in words: the dry run's account of it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import date, timedelta

from settings import to_plain
from slurm import environment, site_rules
from slurm.environment import Layout
from slurm.submission import Submission
from slurm.walltime import Walltime


def account(ready: Submission) -> list[str]:
    """Lines for a person, at most 100 columns where no path is longer."""
    job = ready.job
    where = f"{ready.cluster.profile.name} ({ready.cluster.found_by})"
    lines = [f"{job.name}: {job.layout} on {where}; launcher {job.launcher}"]
    lines += noted(ready)
    lines += [f"code: {len(ready.code.files)} files of {ready.code.root} are copied and run"] if ready.code else []
    lines += [f"starts from {ready.fork}"] if ready.fork else []
    lines += [continuation(ready), *cost(ready), f"run folder: {os.path.relpath(ready.run.path)}", "every rank gets:"]
    return lines + [f"  {name:<20} {value}" for name, value in variables(ready)]


def noted(ready: Submission) -> list[str]:
    """What its user should know before it starts."""
    said = [*site_rules.notes(ready.job, ready.cluster.profile, date.today()), ready.batch, ready.proposed]
    return [line for line in said if line]


def variables(ready: Submission) -> list[tuple[str, str]]:
    job = ready.job
    return environment.promised(Layout(job.nodes, job.gpus_per_node), ready.run.path, job.environment)


def continuation(ready: Submission) -> str:
    job = ready.job
    how = {
        "chain": f"by a successor that waits in the queue as {job.name}+next",
        "array": f"by an array of {job.array_jobs} jobs, one at a time",
        "requeue": "under the same job id (requeue)",
        "none": "by hand: launch.py resume",
    }
    return f"goes on {how[job.continue_by]}"


def cost(ready: Submission) -> list[str]:
    """The worst case: every attempt takes its whole time limit."""
    job, limit = ready.job, ready.job.walltime or ready.cluster.default_walltime(ready.job.partition)
    if limit is None:
        return [f"cost: {job.world_size} GPUs as long as it runs: no time limit is known here"]
    each = Cost(job.nodes, job.world_size, limit)
    if job.max_gpu_hours is not None:
        bound = f"at most {job.max_gpu_hours:g} GPU-hours in all (--max-gpu-hours)"
    elif job.max_attempts is not None:
        bound = f"at most {each.gpu_hours * job.max_attempts:,.1f} in {job.max_attempts} attempts"
    else:
        bound = "as many jobs as it takes (limits: --max-attempts, --max-gpu-hours)"
    return [f"cost: {each}", f"      {bound}"]


@dataclass(frozen=True)
class Cost:
    """Of one job that takes its whole time limit."""

    nodes: int
    gpus: int
    limit: Walltime

    @property
    def gpu_hours(self) -> float:
        return self.gpus * self.limit / timedelta(hours=1)

    def __str__(self) -> str:
        return f"at most {self.gpu_hours:,.1f} GPU-hours a job ({self.gpus} GPUs x {self.limit})"


def as_json(ready: Submission) -> dict[str, object]:
    return {
        "job": to_plain(ready.job),
        "layout": ready.job.layout,
        "batch": ready.batch,
        "run_dir": str(ready.run.path),
        "account": account(ready),
        "variables": dict(variables(ready)),
        "script": ready.script,
    }
