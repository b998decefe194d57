"""What a submission will be, in words: the dry run's account of it."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from datetime import date, timedelta

from settings import ConfigError, to_plain
from slurm import environment
from slurm.environment import Layout
from slurm.sites import site_rules
from slurm.submission import Submission
from slurm.walltime import Walltime


def show(ready: Submission, plain: bool) -> int:
    """A dry run: the script alone on standard output, what it means beside it; `plain`: all of it as JSON."""
    if plain:
        print(json.dumps(as_json(ready), indent=2))
        return 0
    print("\n".join(account(ready)), end="\n\n", file=sys.stderr, flush=True)
    sys.stdout.write(ready.script)
    return 0


def account(ready: Submission) -> list[str]:
    """Lines for a person, at most 100 columns where no path is longer."""
    job = ready.job
    where = f"{ready.cluster.profile.name} ({ready.cluster.found_by})"
    lines = [f"{job.name}: {job.layout} on {where}; launcher {job.launcher}"]
    lines += noted(ready)
    lines += [f"code: {len(ready.code.files)} files of {ready.code.root} are copied and run"] if ready.code else []
    lines += [f"starts from {ready.fork}"] if ready.fork else []
    lines += [continuation(ready), *cost(ready), f"run folder: {os.path.relpath(ready.run.path)}", "every rank gets:"]
    table = variables(ready)
    width = max(len(name) for name, _ in table)
    return lines + [f"  {name:<{width}}  {value}" for name, value in table]


def noted(ready: Submission) -> list[str]:
    """What its user should know before it starts."""
    said = [*site_rules.notes(ready.job, ready.cluster.profile, date.today()), ready.batch, ready.proposed]
    return [line for line in said if line]


def variables(ready: Submission) -> list[tuple[str, str]]:
    job = ready.job
    layout, network = Layout(job.nodes, job.gpus_per_node), job.network
    return environment.promised(layout, ready.run.path, job.environment, network.environment, network.host_suffix)


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
    billing = ready.cluster.profile.billing
    units = billing.counted(each.gpu_hours, each.node_hours) if billing else None
    return [f"cost: {each}{f', {units}' if units else ''}", f"      {bound}"]


@dataclass(frozen=True)
class Cost:
    """Of one job that takes its whole time limit."""

    nodes: int
    gpus: int
    limit: Walltime

    @property
    def gpu_hours(self) -> float:
        return self.gpus * self.limit / timedelta(hours=1)

    @property
    def node_hours(self) -> float:
        return self.nodes * self.limit / timedelta(hours=1)

    def __str__(self) -> str:
        return f"at most {self.gpu_hours:,.1f} GPU-hours a job ({self.gpus} GPUs x {self.limit})"


def not_here(ready: Submission) -> ConfigError:
    return ConfigError(f"no Slurm of the cluster {ready.job.cluster} answers here: --dry-run shows what it would get")


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
