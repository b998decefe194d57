"""What the supervisor asks of whoever gave it the nodes: Slurm, or nobody (local mode)."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from slurm import commands, nodelist
from slurm.causes.cause import bad_nodes
from slurm.commands import JobFacts
from slurm.config import JobConfig
from slurm.environment import Allocation
from slurm.errors import CommandFailed
from slurm.exits import CONTINUE
from slurm.rundir import RunDir
from slurm.step import Step, shim_argv, srun_argv


class Scheduler(Protocol):
    job_id: str | None
    restart_count: int
    unfinished: int
    """Exit code when the run is not done and this process has no further part in it."""

    def hosts(self) -> list[str]: ...

    def facts(self) -> JobFacts | None:
        """What is known of our own job now; None: no scheduler, or no answer."""

    def deadline(self, facts: JobFacts | None) -> float | None:
        """Unix seconds at which the allocation ends."""

    def step_argv(self, step: Step) -> list[str]: ...

    def broadcast(self, file: Path, target: Path) -> Path:
        """A file, on every node's own disk. Returns where it is read there. Raises CommandFailed."""

    def queue_successor(self) -> str | None:
        """Make sure that a job waits to go on after this one. Returns what was done, in words."""

    def cancel_successor(self) -> None: ...

    def mail_the_end(self) -> None:
        """This job is the last one of what its user waits for: its end is mailed, if that is wanted."""

    def go_on(self) -> str | None:
        """Hand over to the next job as this process's last act. Returns who goes on, in words; None: this process.

        Raises CommandFailed when nobody does.
        """


class Slurm:
    unfinished = 0  # a job that has handed its run over has done well

    def __init__(self, run: RunDir, job: JobConfig, allocation: Allocation) -> None:
        assert allocation.job_id is not None and allocation.nodelist is not None
        self.run, self.job = run, job
        self.job_id: str | None = allocation.job_id
        self.restart_count = allocation.restart_count
        self._id = allocation.job_id
        self._hosts = nodelist.expand(allocation.nodelist)
        self._successor: str | None = None
        self._ending = False
        """Slurm ends this job for good: nothing but a successor can go on."""

    def hosts(self) -> list[str]:
        return self._hosts

    def facts(self) -> JobFacts | None:
        try:
            facts = commands.show_job(self._id)
        except CommandFailed as error:
            print(f"outlast: {error}", flush=True)
            return None
        if facts is not None:
            self._ending = facts.state == "COMPLETING" and facts.restarts == self.restart_count
        return facts

    def deadline(self, facts: JobFacts | None) -> float | None:
        return facts.end_time if facts else None

    def step_argv(self, step: Step) -> list[str]:
        return srun_argv(step, self.job.cpus_per_gpu, self.job.srun_args)

    def broadcast(self, file: Path, target: Path) -> Path:
        commands.broadcast(self._id, file, target)
        return target

    def successors(self) -> list[str]:
        """The jobs of this run that wait behind ours, noted or not: we may have been killed after an sbatch."""
        jobs = commands.jobs_of(self.run.log_folders())
        # One that runs already owns the run: then it is us who are lost to Slurm.
        return [job.job_id for job in jobs if job.waits_behind(self._id)]

    def queue_successor(self) -> str | None:
        wanted = self.job.chained or (self._ending and self.job.continue_by != "none")
        return self._queue_successor() if wanted and self._successor is None else None

    def _queue_successor(self) -> str:
        waiting = self.successors()
        job_id = waiting[0] if waiting else self._submit()
        self._successor = job_id
        self.run.record_job(commands.sent_as(job_id), after=self._id)
        # Until here Slurm's own requeue would have gone on after the loss of our node. From here on it would only make
        # the successor wait; where a site forbids this, it does.
        with suppress(CommandFailed):
            commands.update(self._id, Requeue="0")
        self.avoid_bad_nodes(job_id)
        return f"job {job_id} waits to go on after this one"

    def _submit(self) -> str:
        return commands.submit(self.run.script, after=self._id, name=f"{self.job.name}+next")

    def take_name(self, facts: JobFacts | None) -> None:
        """A successor was queued as NAME+next; now that it runs it is the run."""
        if facts is not None and facts.name != self.job.name:
            with suppress(CommandFailed):  # a site may forbid it; nothing depends on it
                commands.update(self._id, JobName=self.job.name)

    def cancel_successor(self) -> None:
        if waiting := self.successors():
            commands.cancel(*waiting)

    def mail_the_end(self) -> None:
        if self.job.mails != self.job.mails_on_the_way:
            each = ["ARRAY_TASKS"] if "_" in self._id else []  # else of an array as a whole
            commands.update(self._id, MailType=",".join([*self.job.mails, *each]))

    def go_on(self) -> str | None:
        """By the way that was asked for, and where that is refused by the other one."""
        if self.job.continue_by == "none":
            return "nobody goes on (--continue-by none)"
        chained = self.job.chained or self._successor is not None
        ways = [self._by_successor, self._by_requeue] if chained else [self._by_requeue, self._by_successor]
        try:
            said, fallback = ways[0](), None
        except CommandFailed as error:
            asked = "a successor" if chained else "the requeue"
            said = fallback = f"{ways[1]()}, since {asked} was refused: {error}"
        self.run.note_fallback(fallback)
        return said

    def _by_successor(self) -> str:
        """One queued at the very end hears from Slurm whether its user cancelled us: it never revives a run."""
        if self._successor is None:
            return self._queue_successor()
        if self._given_up():  # its user's word as a rule: nobody is queued against it
            return f"job {self._successor}, which was to go on, is not in the queue any more: launch.py resume goes on"
        self.avoid_bad_nodes(self._successor)
        return f"job {self._successor} goes on"

    def _given_up(self) -> bool:
        try:
            jobs = commands.jobs_of(self.run.log_folders())
            return not any(job.alive and job.job_id != self._id for job in jobs)
        except CommandFailed:  # nothing is known: it waits, as far as we were told
            return False

    def _by_requeue(self) -> str:
        """It revives even a job that its user has cancelled: only one that surely was not is sent back."""
        facts = commands.show_job(self._id)
        if facts is None:
            raise CommandFailed(f"job {self._id} is unknown to Slurm")
        if facts.restarts > self.restart_count:
            return "Slurm itself starts this job again"
        if facts.state != "RUNNING" and facts.reason != "TimeLimit":
            raise CommandFailed(f"job {self._id} is {facts.state} already")
        commands.requeue(self._id)
        self.avoid_bad_nodes(self._id)  # Slurm ends us soon, but not at once
        return "this job starts again"

    def avoid_bad_nodes(self, job_id: str) -> None:
        """Of a job that waits. Where too few nodes would be left, or the site refuses, it starts wherever it can."""
        bad = bad_nodes(self.run.attempts(), time.time()) if self.job.exclude_bad_nodes else []
        if not bad:
            return
        nodes = ",".join(filter(None, [self.job.exclude, *bad]))
        try:
            commands.check_fits_without(self.run.script, nodes)
            commands.update(job_id, ExcNodeList=nodes)
            print(f"outlast: job {job_id} keeps away from {nodes}: attempts failed there", flush=True)
        except CommandFailed as error:
            print(f"outlast: job {job_id} cannot keep away from {nodes}: {error}", flush=True)


class Here(Slurm):
    """An allocation of the user's own, as salloc gives it: its nodes are used, its life is not ours."""

    unfinished = CONTINUE

    def queue_successor(self) -> str | None:
        return None

    def cancel_successor(self) -> None:
        return None

    def mail_the_end(self) -> None:
        return None

    def go_on(self) -> str | None:
        return "the allocation ends: launch.py resume goes on in another one, or in the queue"


class Local:
    """No scheduler: one host, and a time limit only when one was given."""

    job_id: str | None = None
    restart_count = 0
    unfinished = CONTINUE

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

    def broadcast(self, file: Path, target: Path) -> Path:
        return file

    def queue_successor(self) -> str | None:
        return None

    def cancel_successor(self) -> None:
        return None

    def mail_the_end(self) -> None:
        return None

    def go_on(self) -> str | None:
        """The next "job" is the same process with a new time limit."""
        self._start = time.time()
        return "nobody goes on (--continue-by none)" if self.job.continue_by == "none" else None
