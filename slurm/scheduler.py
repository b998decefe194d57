"""What the supervisor asks of whoever gave it the nodes: Slurm, or nobody (local mode)."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import replace
from typing import Protocol

from slurm import commands, nodelist
from slurm.commands import JobFacts
from slurm.config import JobConfig
from slurm.environment import Allocation
from slurm.errors import CommandFailed
from slurm.rundir import RunDir
from slurm.step import Step, shim_argv, srun_argv


class Scheduler(Protocol):
    job_id: str | None
    restart_count: int

    def hosts(self) -> list[str]: ...

    def facts(self) -> JobFacts | None:
        """What is known of our own job now; None: no scheduler, or no answer."""

    def deadline(self, facts: JobFacts | None) -> float | None:
        """Unix seconds at which the allocation ends."""

    def step_argv(self, step: Step) -> list[str]: ...

    def queue_successor(self) -> str | None:
        """Make sure that a job waits to go on after this one. Returns what was done, in words."""

    def cancel_successor(self) -> None: ...

    def go_on(self, facts: JobFacts | None) -> bool:
        """Hand over to the next job as this process's last act. False: the run goes on in this process."""


class Slurm:
    def __init__(self, run: RunDir, job: JobConfig, allocation: Allocation) -> None:
        assert allocation.job_id is not None and allocation.nodelist is not None
        self.run, self.job = run, job
        self.job_id: str | None = allocation.job_id
        self.restart_count = allocation.restart_count
        self._id = allocation.job_id
        self._hosts = nodelist.expand(allocation.nodelist)
        self._queued = False

    def hosts(self) -> list[str]:
        return self._hosts

    def facts(self) -> JobFacts | None:
        try:
            return commands.show_job(self._id)
        except CommandFailed as error:
            print(f"outlast: {error}", flush=True)
            return None

    def deadline(self, facts: JobFacts | None) -> float | None:
        return facts.end_time if facts else None

    def step_argv(self, step: Step) -> list[str]:
        return srun_argv(step, self.job.cpus_per_gpu, self.job.srun_args)

    def successor(self) -> str | None:
        """The job of this run that waits behind ours, noted or not: we may have been killed after an sbatch."""
        jobs = commands.jobs_of(self.run.logs)
        return next((job.job_id for job in jobs if job.after == self._id and job.alive), None)

    def queue_successor(self) -> str | None:
        if not self.job.chained or self._queued:
            return None
        waiting = self.successor()
        job_id = waiting or commands.submit(self.run.script, after=self._id, name=f"{self.job.name}+next")
        self._queued = True
        if all(record["job"] != job_id for record in self.run.jobs()):
            self.run.record_job(job_id, after=self._id)
        return f"job {job_id} waits to go on after this one{' already' if waiting else ''}"

    def take_name(self, facts: JobFacts | None) -> None:
        """A successor was queued as NAME+next; now that it runs it is the run."""
        if facts is not None and facts.name != self.job.name:
            with suppress(CommandFailed):  # a site may forbid it; nothing depends on it
                commands.rename(self._id, self.job.name)

    def cancel_successor(self) -> None:
        job_id = self.successor() if self.job.chained else None
        if job_id is not None:
            commands.cancel(job_id)

    def go_on(self, facts: JobFacts | None) -> bool:
        """A requeue revives even a job that its user has cancelled: only one that surely just runs is sent back."""
        if self.job.continue_by == "requeue" and facts is not None and facts.state == "RUNNING":
            commands.requeue(self._id)
        return True


class Here(Slurm):
    """An allocation of the user's own, as salloc gives it: its nodes are used, its life is not ours."""

    def queue_successor(self) -> str | None:
        return None

    def cancel_successor(self) -> None:
        return None

    def go_on(self, facts: JobFacts | None) -> bool:
        """It ends with its time limit: `launch.py resume` goes on in another, or in the queue."""
        return True


class Local:
    """No scheduler: one host, and a time limit only when one was given."""

    job_id: str | None = None
    restart_count = 0

    def __init__(self, job: JobConfig) -> None:
        self.job = job
        self._start = time.time()

    def hosts(self) -> list[str]:
        return [os.uname().nodename]

    def facts(self) -> JobFacts | None:
        return None

    def deadline(self, facts: JobFacts | None) -> float | None:
        return self._start + self.job.walltime.total_seconds() if self.job.walltime else None

    def step_argv(self, step: Step) -> list[str]:
        """There is no srun: one shim spawns all ranks."""
        return shim_argv(replace(step, launcher="spawn") if step.launcher == "srun" else step)

    def queue_successor(self) -> str | None:
        return None

    def cancel_successor(self) -> None:
        return None

    def go_on(self, facts: JobFacts | None) -> bool:
        """The next "job" is the same process with a new time limit."""
        self._start = time.time()
        return self.job.continue_by == "none"
