"""The sbatch text of a job: one pure function, so that a dry run, a test and submitit see the same bytes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

from settings import ConfigError
from slurm.config import JobConfig
from slurm.environment import ARRAY_TASK
from slurm.exits import CONFIG
from slurm.rundir import Sweep

_NOT_YOURS = "outlast: this run's code is not yours: start a run of your own from its checkpoint: launch.py --fork RUN"

_GPUS = {
    *("gpus", "gpus-per-node", "gpus-per-task", "gpus-per-socket"),
    *("tres-per-job", "tres-per-node", "tres-per-socket", "tres-per-task"),
}


def submission_text(job: JobConfig, run_dir: Path, python: Path, workdir: Path) -> str:
    """RUN_DIR/submission.sh: flags, set-up lines, and the supervisor in the shell's place. Raises ConfigError."""
    return _text(job, dict(options(job, run_dir, workdir)), run_dir / "code", python, shlex.quote(str(run_dir)))


def array_text(job: JobConfig, sweep: Sweep, python: Path, tasks: str) -> str:
    """SWEEP/submission.sh: the same for many runs, each a task that its link leads to its run."""
    ours = {**dict(options(job, sweep.path, sweep.path)), "array": tasks}
    ours["output"] = f"{_literal(sweep.path)}/tasks/%a/logs/job-%A_%a.log"
    run = f'"$(readlink {shlex.quote(str(sweep.path))}/tasks/"${ARRAY_TASK}")"'
    return _text(job, ours, sweep.path / "code", python, run)


def _text(job: JobConfig, ours: Mapping[str, str | int | bool], code: Path, python: Path, run: str) -> str:
    """`run`: the run's folder as a word of a shell."""
    wanted = [
        *ours.items(),
        *((key, value) for key, value in job.sbatch.items() if value is not False and key not in ours),
    ]
    flags = [_flag(key, value) for key, value in wanted]
    lines = ["#!/bin/bash", *flags, ""]
    if job.share:
        lines += ["umask 027", ""]
    lines += [f"[ -O {shlex.quote(str(code))} ] || {{ echo {shlex.quote(_NOT_YOURS)} >&2; exit {CONFIG}; }}", ""]
    if job.setup:
        lines += ["set -e", *job.setup, "set +e", ""]
    lines += [f"export {_variable(name)}={shlex.quote(value)}" for name, value in job.environment.items()]
    lines += [
        f'export PYTHONPATH={shlex.quote(str(code))}"${{PYTHONPATH:+:$PYTHONPATH}}"',
        f'exec {shlex.quote(str(python))} -P -m slurm.supervisor {run} "$@"',
    ]
    return "\n".join(lines) + "\n"


def options(job: JobConfig, run_dir: Path, workdir: Path) -> Iterator[tuple[str, str | int | bool]]:
    """sbatch's long options and values that are ours; the user's own `sbatch` table comes after them."""
    yield "job-name", job.name
    yield "nodes", job.nodes
    # Both counts: Slurm 24.05 and newer read --ntasks-per-node alone as a maximum.
    yield "ntasks", job.world_size
    yield "ntasks-per-node", job.gpus_per_node
    yield from gpus(job)
    if job.cpus_per_gpu:
        yield "cpus-per-task", job.cpus_per_gpu
    for key in ("mem", "partition", "account", "qos", "constraint", "reservation", "nodelist", "exclude"):
        if getattr(job, key) is not None:
            yield key, getattr(job, key)
    if job.walltime is not None:
        yield "time", str(job.walltime)
    if job.time_min is not None:
        yield "time-min", str(job.time_min)
    if job.mail_user is not None:
        yield "mail-user", job.mail_user
    if job.mails_on_the_way:
        yield "mail-type", ",".join(job.mails_on_the_way)
    yield "chdir", str(workdir)
    if job.continue_by == "array":
        yield "array", f"1-{job.array_jobs}%1"  # one at a time
    yield "output", f"{_literal(run_dir)}/logs/job-{'%A_%a' if job.continue_by == 'array' else '%j'}.log"
    yield "open-mode", "append"  # a requeue truncates the log otherwise
    # Also in a chain, for the time until the successor waits: then the supervisor turns it off.
    yield ("no-requeue" if job.continue_by == "none" else "requeue"), True


def gpus(job: JobConfig) -> Iterator[tuple[str, str]]:
    """The one option that asks for GPUs: Slurm 26.05 refuses two of them. A user's own stands in its place."""
    theirs = str(job.sbatch.get("gres", ""))
    if (
        job.gpus_by == "none"
        or "gpu" in theirs
        or any("gpu" in f"{key}={job.sbatch[key]}" for key in _GPUS & {*job.sbatch})
    ):
        return
    kind = f"{job.gpu_type}:" if job.gpu_type else ""
    if job.gpus_by == "gres":
        yield "gres", ",".join(filter(None, [f"gpu:{kind}{job.gpus_per_node}", theirs]))
    else:
        yield job.gpus_by, f"{kind}{1 if job.gpus_by == 'gpus-per-task' else job.gpus_per_node}"


def _flag(key: str, value: str | int | bool) -> str:
    """One line: what comes after a line break would be the shell's."""
    if not re.fullmatch(r"[a-z][a-z0-9_-]*", key):
        raise ConfigError(f"sbatch has no option {key!r}: take its long name, without dashes before it")
    if "\n" in str(value) or "\r" in str(value):
        raise ConfigError(f"--{key}={str(value)!r}: a line break cannot stand in an option of sbatch: take it out")
    return f"#SBATCH --{key}" if value is True else f"#SBATCH --{key}={shlex.quote(str(value))}"


def _variable(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise ConfigError(f"environment: {name!r} is no name of a variable: letters, digits and _ only")
    return name


def _literal(path: Path) -> str:
    """A path in which sbatch must not read %-patterns."""
    return str(path).replace("%", "%%")
