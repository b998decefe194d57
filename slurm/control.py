"""A run after its submission: start it here, stop it, start it again."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from durable import write_atomic
from settings import ConfigError, dump_yaml, read_yaml, to_plain
from slurm import cluster as clusters
from slurm import commands
from slurm.config import make_job
from slurm.environment import without_job
from slurm.logs import follow
from slurm.rundir import RunDir
from slurm.submission import Submission, code_environment


def run_locally(run: RunDir) -> int:
    """Local mode: the supervisor as a child of the terminal, with rank 0's lines shown. Returns its exit code."""
    argv = [sys.executable, "-P", "-m", "slurm.supervisor", str(run.path)]
    supervisor = subprocess.Popen(argv, env=without_job(code_environment()))
    with suppress(KeyboardInterrupt):  # the terminal has sent it to the supervisor as well
        follow(run, 0, lambda: supervisor.poll() is None)
    return supervisor.wait()


def stop(run: RunDir, why: str) -> str:
    """Ask a run to save and end. Returns what happens, in words."""
    if run.over:
        return f"{run.name} is {'done' if run.done else 'ended already'}"
    job_ids = [record["job"] for record in run.jobs()]
    waiting = commands.queue(job_ids)
    if not any(line.state == "RUNNING" for line in waiting.values()) and job_ids:
        run.cancel("stop", why)
        for job_id in waiting:
            commands.cancel(job_id)
        return f"{run.name} was not running: its place in the queue is given up; go on with launch.py resume {run.name}"
    write_atomic(run.stop_file, why + "\n")
    return f"{run.name} saves at its next step and ends; go on with launch.py resume {run.name}"


def check_can_go_on(run: RunDir) -> None:
    """Raises ConfigError for a run that is done or in the queue, CommandFailed when the queue cannot be asked."""
    if run.done:
        raise ConfigError(f"{run.name} is done: there is nothing to resume")
    waiting = commands.queue([record["job"] for record in run.jobs()])
    if waiting:
        job = next(iter(waiting.values()))
        raise ConfigError(
            f"{run.name} is in the queue already: job {job.job_id} is {job.state}: see launch.py status {run.name}"
        )


def reopen(run: RunDir, flags: Mapping[str, Any], cluster: str) -> Submission:
    """A run's own job, with another layout where flags ask for one. Raises ConfigError."""
    job_file = run.path / "job.yaml"
    saved = read_yaml(job_file)
    where = clusters.find(saved["cluster"] if cluster == "auto" else cluster)
    job = make_job({**saved, **flags, "name": run.name, "cluster": where.profile.name}, str(job_file))
    clusters.check_fits(job, where)
    return Submission(job, where, run, None)


def rewrite_job(submission: Submission) -> None:
    write_atomic(submission.run.script, submission.script)
    write_atomic(submission.run.path / "job.yaml", dump_yaml(to_plain(submission.job)))
