"""A sweep: many runs of one recipe, written, checked and sent together, as one array."""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from durable import nonce, write_atomic
from settings import ConfigError
from slurm import commands, launches, snapshot, submission
from slurm.config import JobConfig
from slurm.rundir import RunDir, Sweep
from slurm.script import array_text
from slurm.sites.cluster import Cluster
from slurm.submission import Submission
from slurm.sweeps import grid
from slurm.sweeps.grid import Combination

WRITERS = 16
"""Run folders that are written at once: their files wait for the disk, one by one."""

Check = Callable[[RunDir, Combination], Submission]
"""A run of the sweep as it would be submitted. Raises ConfigError."""


@dataclass(frozen=True)
class Array(Submission):
    """What is sent: `job` and `cluster` are every run's, `run` is the sweep."""

    tasks: str = ""

    @property
    def script(self) -> str:
        assert isinstance(self.run, Sweep)
        return array_text(self.job, self.run, Path(sys.executable), self.tasks)


@dataclass(frozen=True)
class Plan:
    """What a call of `sweep` will do."""

    array: Array
    sweep: Sweep
    before: list[dict[str, Any]]
    """The sweep's runs until now; empty: it is new."""
    after: list[dict[str, Any]]
    ready: list[Submission]
    """The runs that start or go on; each has its task."""
    left: dict[str, str]
    """Runs that are left as they are, and why."""

    parallel: int | None
    """Runs at a time; None: as many as find nodes."""
    fresh: list[Submission]
    """Those of `ready` that have no folder yet."""


# --- what is to be done -----------------------------------------------------------------------------------


def opened(runs_dir: Path, name: str) -> Sweep:
    """The sweep of this name, which need not be there. Raises ConfigError for a folder that is something else."""
    sweep = Sweep((runs_dir / name).resolve())
    submission.check_folder(sweep.path)
    if sweep.path.exists() and not sweep.file.exists():
        raise ConfigError(f"{sweep.path} is there and is no sweep: take another --name or --runs-dir")
    if sweep.path.exists() and not sweep.own:
        raise ConfigError(f"{sweep.path} belongs to another user: take another --name or --runs-dir")
    return sweep


def planned(
    sweep: Sweep, job: JobConfig, cluster: Cluster, found: Sequence[Combination], parallel: int | None, check: Check
) -> Plan:
    """Every run of these combinations checked, and what has to be done for it. Raises ConfigError."""
    if parallel is not None and parallel < 1:
        raise ConfigError(f"--parallel {parallel}: at least one run at a time")
    before = sweep.entries() if sweep.file.exists() else []
    entries = _entries(sweep, before, found)
    new = [entry for entry in entries if entry not in before]
    job = _continued(replace(job, name=sweep.name), len(entries), parallel)
    runs = [RunDir(sweep.path / entry["run"]) for entry in entries]
    checked = [check(run, one) for run, one in zip(runs, found, strict=True)]
    left = _left(sweep, [run for run in runs if run.path.exists()], cluster)
    ready = [
        dataclasses.replace(one, task=entry["task"], job=replace(one.job, continue_by=job.continue_by))
        for one, entry in zip(checked, entries, strict=True)
        if one.run.name not in left
    ]
    tasks = [entry["task"] for entry in entries if entry["run"] not in left]
    _check_array(tasks, cluster)
    array = Array(job, cluster, sweep, None, tasks=grid.array(tasks, parallel))
    fresh = [one for one in ready if not one.run.path.exists()]
    limit = parallel if parallel is not None and parallel < len(ready) else None
    return Plan(array, sweep, before, [*before, *new], ready, left, limit, fresh)


def with_limits(plan: Plan, proposed: Sequence[Submission]) -> Plan:
    """With the time limit and the GPU-hours of the longest run, since an array's jobs are alike. `proposed`: the runs
    that are ready, each with its own."""
    if not proposed:
        return plan
    longest = max(proposed, key=lambda one: (one.job.walltime or timedelta(0), one.job.max_gpu_hours or 0))
    limits = {"walltime": longest.job.walltime, "max_gpu_hours": longest.job.max_gpu_hours}

    def limited(one: Submission) -> Any:
        return dataclasses.replace(one, job=replace(one.job, **limits), proposed=longest.proposed)

    array, ready = limited(plan.array), [limited(one) for one in plan.ready]
    fresh = [one for one, old in zip(ready, plan.ready, strict=True) if old in plan.fresh]
    return dataclasses.replace(plan, array=array, ready=ready, fresh=fresh)


def _entries(sweep: Sweep, before: Sequence[dict[str, Any]], found: Sequence[Combination]) -> list[dict[str, Any]]:
    """An entry for each combination: the one that it has, or a new one."""
    known = [next((entry for entry in before if entry["values"] == one.values), None) for one in found]
    new = [one for one, entry in zip(found, known, strict=True) if entry is None]
    first = max((entry["task"] for entry in before), default=-1) + 1
    names = iter(grid.run_names(sweep.name, new, first, [entry["run"] for entry in before]))
    numbers = iter(range(first, first + len(new)))
    return [
        entry or {"run": next(names), "task": next(numbers), "values": one.values}
        for one, entry in zip(found, known, strict=True)
    ]


def _continued(job: JobConfig, runs: int, parallel: int | None) -> JobConfig:
    """`auto`: a chain survives more, but its jobs are none of the array, whose limit would not hold them."""
    if job.continue_by == "array":
        raise ConfigError("--continue-by array: a sweep is an array already: take chain, requeue or none")
    limited = parallel is not None and parallel < runs
    way = ("requeue" if limited else "chain") if job.continue_by == "auto" else job.continue_by
    return replace(job, continue_by=way)


def _check_array(tasks: Sequence[int], cluster: Cluster) -> None:
    if cluster.site is not None and tasks and max(tasks) > cluster.site.largest_array:
        size = cluster.site.largest_array + 1
        raise ConfigError(
            f"a sweep of {max(tasks) + 1} runs: arrays of this Slurm end at {size} (MaxArraySize): give fewer values, "
            "or spread them over several sweeps: --name"
        )


def _left(sweep: Sweep, runs: Sequence[RunDir], cluster: Cluster) -> dict[str, str]:
    """Runs that are done, or at work, and why they are left. Raises CommandFailed where that cannot be known."""
    if not runs:
        return {}
    live = set()
    if cluster.live:
        for one in (sweep, *runs):
            launches.settle(one)
        folders = {folder: run.name for run in runs for folder in run.log_folders()}
        lines = commands.jobs_of(folders.keys(), commands.PATIENCE)
        live = {folders[line.log_folder] for line in lines if line.alive}
    states = {run.name: "is done" for run in runs if run.done}
    states |= {name: "waits or runs" for name in live if name not in states}
    return states | {run.name: "runs here" for run in runs if run.supervisor_here() and run.name not in states}


# --- doing it ---------------------------------------------------------------------------------------------


def rehearse(plan: Plan) -> None:
    """Raises ConfigError for what Slurm refuses: also an array that is more than its user may have in the queue."""
    try:
        submission.rehearse(plan.array)
    except ConfigError as error:
        raise ConfigError(f"a sweep of {len(plan.ready)} runs takes as many places in the queue: {error}") from None


def write(plan: Plan) -> None:
    """The sweep's folder and its runs', before anything is queued. What is missing after a crash is written by the next
    call. Raises ConfigError."""
    sweep, job = plan.sweep, plan.array.job
    if job.share:
        os.umask(0o027)
    try:
        sweep.path.mkdir(mode=0o750 if job.share else 0o700, parents=True, exist_ok=True)
        for folder in ("tasks", "submitit"):
            (sweep.path / folder).mkdir(exist_ok=True)
        sweep.write(plan.after, [one.task for one in plan.ready if one.task is not None])
        if not (sweep.path / "code").exists():
            snapshot.copy_ours(sweep.path)
        with ThreadPoolExecutor(WRITERS) as pool:
            list(pool.map(_write_run, plan.ready))
        write_atomic(sweep.script, plan.array.script)
    except OSError as error:
        raise submission.unwritable(sweep, error) from None


def _write_run(one: Submission) -> None:
    if one.run.path.exists():
        submission.rewrite(one, update_code=False)
        one.run.lift_end()
    else:
        submission.write_run_dir(one)
    assert one.task is not None
    link = Sweep(one.run.path.parent).link(one.task)
    fresh = link.with_name(f".{link.name}-{nonce()}")
    fresh.symlink_to(one.run.path)
    fresh.rename(link)


def discard(plan: Plan) -> None:
    """After a refusal: what was written for nothing goes, unless a job may come for it."""
    sweep = plan.sweep
    if not sweep.file.exists() or launches.unsettled(sweep) is not None:
        return
    for one in plan.fresh:
        if not one.run.jobs() and not one.run.newest_epoch():
            shutil.rmtree(one.run.path, ignore_errors=True)
    kept = [entry for entry in plan.after if entry in plan.before or (sweep.path / entry["run"]).exists()]
    if kept or sweep.jobs():
        sweep.write(kept, sweep.sent())
    else:
        shutil.rmtree(sweep.path)


def send(plan: Plan) -> str:
    """One sbatch for all. Returns the array's id. Raises as submission.send does."""
    return submission.send(plan.array)[1]
