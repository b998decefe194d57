"""A run after its submission: start it here, stop it, start it again."""

from __future__ import annotations

import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from durable import as_open_as, write_atomic
from settings import ConfigError, merge, read_yaml
from slurm import commands, environment, launches
from slurm.causes.failures import job_log
from slurm.causes.logs import follow, new_lines
from slurm.config import make_job
from slurm.here import supervise_here
from slurm.rundir import RunDir
from slurm.sites import cluster as clusters
from slurm.sites import site_rules
from slurm.submission import Submission, check_sbatch_table
from slurm.watch.live import Live


def run_here(run: RunDir, allocation: bool) -> int:
    """The supervisor as a child of the terminal, with its lines and rank 0's shown. Returns its exit code.

    `allocation`: in the one that this shell is in, as salloc gives it; else without a scheduler.
    """
    log = job_log(run, environment.allocation().job_id if allocation else None)
    live = Live(run) if sys.stdout.isatty() else None
    emit = live.emit if live else _say
    # A file stands between: it outlives this terminal, and no line of the supervisor's breaks into the one of progress.
    with open(log, "ab") as words:
        position = words.tell()
        child = supervise_here(run, allocation, words)

        def beside(last: bool = False) -> None:
            nonlocal position
            lines, position = new_lines(log, position, last)
            for line in lines:
                emit(line)
            if live:
                live.draw()

        signal.signal(signal.SIGINT, _once)
        follow(run, 0, lambda: child.poll() is None, emit, beside)
        code = child.wait()
        beside(last=True)
    if live:
        live.close()
    return code


def _once(signum: int, frame: object) -> None:
    """The terminal has sent it to the supervisor as well, which saves and ends: its lines are still to be read."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _say(line: str) -> None:
    print(line, flush=True)


def stop(runs: Sequence[RunDir], why: str) -> list[str]:
    """Ask runs to save and end. Returns what happens to each, in words. Raises ConfigError."""
    for run in runs:
        if not run.own:
            raise ConfigError(f"{run.path} belongs to another user, who can stop it")
        if not run.over:
            launches.reconcile(run)
    live = commands.queue([record["job"] for run in runs if not run.over for record in run.jobs()])
    told, given_up = [], []
    for run in runs:
        ours = {record["job"] for record in run.jobs()}
        mine = [line for line in live.values() if line.is_one_of(ours)]
        if run.over:
            told.append(f"{run.name} is {'done' if run.done else 'ended already'}")
        elif any(line.state in ("RUNNING", "SUSPENDED") for line in mine) or supervised(run):
            with as_open_as(run.path):
                write_atomic(run.stop_file, why + "\n")
            told.append(f"{run.name} saves at its next step and ends; go on with launch.py resume {run.name}")
        else:
            with as_open_as(run.path):
                run.cancel("stop", why)
            given_up += [line.job_id for line in mine]
            what = "its place in the queue is given up" if mine else "nothing of it is in the queue"
            told.append(f"{run.name} was not running: {what}; go on with launch.py resume {run.name}")
    if given_up:
        commands.cancel(*given_up)
    return told


def supervised(run: RunDir) -> str | None:
    """Who runs it without a job of its own in the queue (local mode, --here), in words; None: nobody that can be seen.

    On another host only an allocation can be asked for. One that nobody sees is fenced when a later attempt starts.
    """
    if (pid := run.supervisor_here()) is not None:
        return f"process {pid} on this host"
    claim = run.open_claim()
    if claim is None or claim.job_id is None or not commands.queue([claim.job_id]):
        return None
    return f"process {claim.pid} on {claim.host}, in the allocation {claim.job_id}"


def check_can_go_on(run: RunDir) -> None:
    """Raises ConfigError for a run that is done, in the queue or another's, CommandFailed when the queue cannot be
    asked."""
    if run.done:
        raise ConfigError(f"{run.name} is done: there is nothing to resume; from its checkpoint: --fork {run.name}")
    if not run.own:
        raise ConfigError(f"{run.path} belongs to another user: start your own from its checkpoint: --fork {run.path}")
    if run.jobs() or launches.newest(run):  # else it was never sent, and perhaps there is no Slurm
        launches.reconcile(run)
        launches.check_free(run)
    if (who := supervised(run)) is not None:
        raise ConfigError(f"{run.name} runs already: {who}: see launch.py status {run.name}, launch.py stop {run.name}")


def fit_allocation(job: dict[str, Any]) -> dict[str, Any]:
    """The job's fields on the allocation of this shell, whole. Raises ConfigError."""
    job_id = environment.allocation().job_id
    facts = commands.show_job(job_id) if job_id else None
    if facts is None:
        take = "salloc --nodes 2 --ntasks-per-node 8 --gpus-per-node 8"
        raise ConfigError(f"--here: this shell is in no allocation: take one first: {take}")
    if "walltime" in job:
        raise ConfigError(f"--walltime {job['walltime']}: with --here the allocation has its own time limit")
    has = {"nodes": facts.nodes, **({"gpus_per_node": facts.gpus_per_node} if facts.gpus_per_node else {})}
    for field, flag in (("nodes", "--nodes"), ("gpus_per_node", "--gpus")):
        if field in job and field in has and job[field] != has[field]:
            raise ConfigError(
                f"{flag} {job[field]}: the allocation {job_id} has {has[field]}: take {flag} {has[field]}"
            )
    found = {**has, **job}
    ranks = found.get("gpus_per_node", 1)
    if facts.cpus < facts.nodes * ranks:  # srun would refuse its step
        raise ConfigError(
            f"--here: the allocation {job_id} has {facts.cpus} CPUs for {facts.nodes * ranks} ranks: take one with "
            f"salloc --nodes {facts.nodes} --ntasks-per-node {ranks} --gpus-per-node {ranks}"
        )
    return found


def reopen(run: RunDir, changes: Mapping[str, Any], cluster: str, dry_run: bool = False) -> Submission:
    """A run's own job, with what its user changes: every field of a job is layout. Raises ConfigError."""
    job_file = run.path / "job.yaml"
    saved = read_yaml(job_file)
    where = clusters.find(saved["cluster"] if cluster == "auto" else cluster, dry_run)
    fixed = {"name": run.name, "cluster": where.reference, "command": saved.get("command")}
    data = {**merge(site_rules.spoken(saved, where.profile), changes), **fixed}
    job = make_job(site_rules.fitted(data, where.profile), str(job_file))
    check_sbatch_table(job)
    site_rules.check(job, where.profile, where.version)
    clusters.check_fits(job, where)
    if job.workdir and not Path(job.workdir).is_dir():
        raise ConfigError(f"{run.name} ran in {job.workdir}, which is no folder any more: take job.workdir=FOLDER")
    return Submission(clusters.with_continuation(job, where), where, run, None)
