"""Submission through submitit: its executor sends our own text, and its Job reads the state of what was sent.

The only file that imports submitit. Nothing is pickled: `sbatch RUN_DIR/submission.sh` does the same.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any, cast

from submitit.core.utils import FailedJobError, FailedSubmissionError
from submitit.slurm.slurm import SlurmExecutor, SlurmInfoWatcher, SlurmJob

from slurm import commands
from slurm.environment import without_job
from slurm.errors import CommandFailed, ControllerAway
from slurm.launches import SBATCH_SECONDS
from slurm.rundir import RunDir


class QueueWatcher(SlurmInfoWatcher):
    """States from one squeue: sacct needs an accounting database, which many small clusters lack."""

    def _make_command(self) -> list[str] | None:
        jobs = sorted(self._registered - self._finished)
        return ["squeue", "--states=all", "--format=%i|%T|%N", f"--jobs={','.join(jobs)}"] if jobs else None

    def read_info(self, string: bytes | str) -> dict[str, dict[str, str]]:
        text = string if isinstance(string, str) else string.decode()
        rows = (line.split("|") for line in text.splitlines()[1:])
        return {job: {"JobID": job, "State": state, "NodeList": nodes} for job, state, nodes in rows}


class RunJob(SlurmJob[Any]):
    watcher = QueueWatcher()


class RunExecutor(SlurmExecutor):
    """Sends a text that is ready, as one command; submitit's own pickle and wrapper are left out."""

    job_class = RunJob

    def __init__(self, folder: Path, text: str, tasks: int) -> None:
        super().__init__(folder=folder)
        self._text, self._tasks = text, tasks

    def _make_submission_file_text(self, command: str, uid: str) -> str:
        return self._text

    def _num_tasks(self) -> int:
        return self._tasks

    def _make_submission_command(self, submission_file_path: Path) -> list[str]:
        """submitit knows no time limit; in the foreground it dies with launch.py's process group."""
        return ["timeout", "--foreground", str(SBATCH_SECONDS), "sbatch", str(submission_file_path)]

    def send(self) -> RunJob:
        return cast(RunJob, self._submit_command(""))


def submit(run: RunDir, tasks: int) -> str:
    """Queue RUN_DIR/submission.sh. Returns the job's id.

    Raises CommandFailed with Slurm's own words: nothing is queued then, unless it is a ControllerAway that was sent.
    """
    try:
        with _clean_environment(), redirect_stderr(StringIO()):  # submitit echoes sbatch's words; ours have them
            job = RunExecutor(run.path / "submitit", run.script.read_text(encoding="utf-8"), tasks).send()
    except FailedJobError as error:
        ended = error.__cause__
        code = ended.returncode if isinstance(ended, subprocess.CalledProcessError) else 1
        raise commands.failure("sbatch", code, str(error)) from None
    except FailedSubmissionError as error:  # it ended well, and named no job
        raise ControllerAway(" ".join(str(error).split())) from None
    except RuntimeError as error:  # submitit finds no srun here
        raise CommandFailed(str(error)) from None
    return str(job.job_id)


@contextmanager
def _clean_environment() -> Iterator[None]:
    """SBATCH_* in the user's shell would override the script's flags, an outer job's SLURM_* would leak into ours."""
    saved = dict(os.environ)
    os.environ.clear()
    os.environ.update(without_job(saved))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(saved)
