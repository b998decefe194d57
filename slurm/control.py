"""A run after its submission: start it here, stop it, start it again."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from durable import write_atomic
from settings import ConfigError, merge, read_yaml
from slurm import cluster as clusters
from slurm import commands, environment, launches, site_rules, snapshot
from slurm.config import check_launcher, make_job
from slurm.environment import without_job
from slurm.logs import follow
from slurm.rundir import RunDir
from slurm.submission import Submission, code_environment, write_job


def run_here(run: RunDir, allocation: bool) -> int:
    """The supervisor as a child of the terminal, with rank 0's lines shown. Returns its exit code.

    `allocation`: in the one that this shell is in, as salloc gives it; else without a scheduler.
    """
    argv = [sys.executable, "-P", "-m", "slurm.supervisor", str(run.path), *(["--here"] if allocation else [])]
    environ = code_environment(run.path / "code")
    supervisor = subprocess.Popen(argv, env=environ if allocation else without_job(environ))
    with suppress(KeyboardInterrupt):  # the terminal has sent it to the supervisor as well
        follow(run, 0, lambda: supervisor.poll() is None)
    return supervisor.wait()


def stop(run: RunDir, why: str) -> str:
    """Ask a run to save and end. Returns what happens, in words."""
    if run.over:
        return f"{run.name} is {'done' if run.done else 'ended already'}"
    launches.reconcile(run)
    waiting = commands.queue([record["job"] for record in run.jobs()])
    if not any(line.state == "RUNNING" for line in waiting.values()) and not supervised(run):
        run.cancel("stop", why)
        for job_id in waiting:
            commands.cancel(job_id)
        what = "its place in the queue is given up" if waiting else "nothing of it is in the queue"
        return f"{run.name} was not running: {what}; go on with launch.py resume {run.name}"
    write_atomic(run.stop_file, why + "\n")
    return f"{run.name} saves at its next step and ends; go on with launch.py resume {run.name}"


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
    if run.path.stat().st_uid != os.getuid():
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
    site_rules.check(job, where.profile, where.version)
    clusters.check_fits(job, where)
    return Submission(clusters.with_continuation(job, where), where, run, None)


def rewrite(submission: Submission, update_code: bool) -> None:
    """The run's files as it goes on with them. Raises ConfigError."""
    run = submission.run
    check_launcher(submission.job)
    if update_code:
        snapshot.copy_ours(run.path)
    if submission.config_text is not None:
        write_atomic(run.path / "config.yaml", submission.config_text)
    write_job(submission, run)
