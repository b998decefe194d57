"""No run is submitted twice: a submission is written down before sbatch, and settled before the next one.

A launch.py, its sbatch or the controller may die at any moment. So each submission of a run has a number that one
launch.py wins (RUN_DIR/launches/0001), and while nothing is noted of what came of it, the queue is asked for jobs
that log into the run's folder.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from durable import fsync_path, nonce, write_atomic
from settings import ConfigError
from slurm import commands
from slurm.commands import QueueLine
from slurm.errors import CommandFailed
from slurm.rundir import RunDir

SBATCH_SECONDS = 60
"""After these an sbatch is ended: until then one that its launch.py left behind may still queue a job."""
SETTLING_SECONDS = 1.0
"""Between two looks into the queue: a request that was sent before the first one is through by the second."""


@dataclass(frozen=True)
class Launch:
    """A submission that has begun."""

    number: int
    time: float
    host: str
    pid: int
    started: str
    """When that process started: with the pid it names one process for good."""
    jobs: int
    """Jobs of the run that were noted when it began. When there are more, it has ended well."""


def newest(run: RunDir) -> int:
    """Number of the last submission that began; 0: none."""
    try:
        return max((int(name) for name in os.listdir(_folder(run)) if name.isdigit()), default=0)
    except FileNotFoundError:
        return 0


def begin(run: RunDir, number: int) -> Launch:
    """Written before sbatch is called. Raises CommandFailed when another launch.py has taken the number."""
    pid = os.getpid()
    launch = Launch(number, time.time(), os.uname().nodename, pid, _started(pid) or "", len(run.jobs()))
    fresh = _folder(run) / f".{nonce()}"
    try:
        fresh.mkdir(parents=True)
        write_atomic(fresh / "launch.json", json.dumps(asdict(launch)) + "\n")
        fresh.rename(_place(run, number))  # fails when it is there: it has a file in it. Hard links are not everywhere
        fsync_path(_folder(run))
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        told = f"{run.name} is being submitted by another launch.py: see launch.py status {run.name}"
        raise CommandFailed(told) from None
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return launch


def end(run: RunDir, launch: Launch) -> None:
    """Nothing came of it, and nothing can."""
    write_atomic(_place(run, launch.number) / "none", "")


def unsettled(run: RunDir) -> Launch | None:
    """The last submission, while nothing is noted of what came of it: a job of it may be in the queue."""
    place = _place(run, newest(run))
    if not place.exists() or (place / "none").exists():
        return None
    launch = Launch(**json.loads((place / "launch.json").read_text(encoding="utf-8")))
    return launch if len(run.jobs()) == launch.jobs else None


def reconcile(run: RunDir) -> str | None:
    """Settle a submission of this run, or of its sweep, that was cut short before its job was noted.

    Any verb may call it before it reads the run's jobs. Returns what was found, in words; None: all was settled.
    Raises CommandFailed while that cannot be known: a job may be in the queue then, and no other must be sent.
    """
    if run.sweep is not None:
        settle(run.sweep)
    return settle(run)


def settle(run: RunDir) -> str | None:
    """`reconcile` of a run, or of a sweep, alone."""
    launch = unsettled(run)
    if launch is None:
        return None
    _check_sender_is_gone(run, launch)
    job = _find_job(run)
    if job is None:
        end(run, launch)
        return f"the last submission of {run.name} was cut short and has queued nothing"
    run.record_job(commands.sent_as(job.job_id), after=None)
    return f"the last submission of {run.name} was cut short after it had queued job {job.job_id}, which is {job.state}"


def check_free(run: RunDir) -> None:
    """Raises ConfigError when a job of this run waits or runs, noted or not; CommandFailed when nobody can tell."""
    job = next((job for job in commands.jobs_of(run.log_folders(), commands.PATIENCE) if job.alive), None)
    if job is not None:
        raise ConfigError(
            f"{run.name} is in the queue already: job {job.job_id} is {job.state}: see launch.py status {run.name}"
        )


def _find_job(run: RunDir) -> QueueLine | None:
    """The job of this run that is not noted; of several one that is alive."""
    noted = {record["job"] for record in run.jobs()}
    for pause in (SETTLING_SECONDS, 0.0):
        jobs = commands.jobs_of(run.log_folders(), commands.PATIENCE)
        found = [job for job in jobs if not job.is_one_of(noted)]
        if found:
            return max(found, key=lambda job: (job.alive, int(commands.sent_as(job.job_id))))
        time.sleep(pause)
    return None


def _check_sender_is_gone(run: RunDir, launch: Launch) -> None:
    """Raises CommandFailed while a launch.py, or the sbatch that it left behind, may still queue a job."""
    if launch.host != os.uname().nodename:
        left = launch.time + SBATCH_SECONDS + 30 - time.time()  # the two hosts' clocks may differ a bit
        again = f"try again in {left:.0f} s" if left > 0 else None
    elif launch.pid != os.getpid() and _started(launch.pid) == launch.started or _sbatch_runs(run):
        again = "try again when it has ended"
    else:
        again = None
    if again:
        raise CommandFailed(f"{run.name} is being submitted by process {launch.pid} on {launch.host}: {again}")


def _started(pid: int) -> str | None:
    """In clock ticks since the boot; None: it has ended, also when nobody has reaped it yet."""
    try:
        state, *facts = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state == "Z" else facts[18]


def _sbatch_runs(run: RunDir) -> bool:
    """Whether an sbatch of this run lives on this host: it is given a file in the run's folder."""
    for command_line in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = command_line.read_text(errors="replace").split("\0")
        except OSError:  # it has ended
            continue
        if "sbatch" in words and any(word.startswith(f"{run.path}/") for word in words):
            return True
    return False


def _folder(run: RunDir) -> Path:
    return run.path / "launches"


def _place(run: RunDir, number: int) -> Path:
    return _folder(run) / f"{number:04d}"
