"""A short job that looks at the nodes, queued, started and ended as a training is, with the probe as its ranks."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from durable import nonce, write_atomic
from slurm import commands, environment, submission
from slurm.causes import logs
from slurm.doctor.case import Case
from slurm.doctor.exam import SIGNAL, Exam
from slurm.errors import CommandFailed
from slurm.here import supervise_here
from slurm.rundir import RunDir
from slurm.submission import Submission
from slurm.walltime import Walltime

WALLTIME = Walltime.parse("00:10:00")
HEARD_SECONDS = 20.0
"""For a signal on its way through the controller to every rank."""
_LOOK = 0.1  # seconds between two looks at the run folder
SILENT = 5
"""Looks into the queue in a row that may fail."""
_PROBE = (
    "import runpy, sys; sys.path.insert(0, sys.argv.pop(1)); runpy.run_module('trainer.probe', run_name='__main__')"
)


def examine_nodes(case: Case, here: bool, prove_requeue: bool, say: Callable[[str], None]) -> Exam:
    """Raises ConfigError and CommandFailed where the job cannot be queued."""
    ready = prepared(case, attempts=2 if prove_requeue else 1)
    exam = Exam(ready.job, ready.run)
    submission.write_run_dir(ready)
    try:
        started = start(ready, here, say)
    except BaseException:  # also Ctrl-C
        submission.discard(ready)
        raise
    Watch(exam, started, say).until_the_end(prove_requeue and started.job_id is not None)
    return exam


def prepared(case: Case, attempts: int) -> Submission:
    """Its ranks run the probe from the copy of our code. No successor: Slurm's own requeue is what is looked at."""
    name = f"doctor-{nonce()}"
    run = RunDir((case.runs / name).resolve())
    probe = [case.job.python, "-P", "-c", _PROBE, str(run.path / "code"), str(folder(run))]
    changes = {"name": name, "walltime": WALLTIME, "time_min": None, "continue_by": "requeue", "command": probe}
    job = replace(case.job, **changes, max_attempts=attempts, max_gpu_hours=None, stop_signal=SIGNAL, progress=None)
    return Submission(replace(job, mail_user=None, lead_seconds=30.0), case.cluster, run, None)


def folder(run: RunDir) -> Path:
    """Where the probe's ranks write."""
    return run.path / "doctor"


def start(ready: Submission, here: bool, say: Callable[[str], None]) -> Started:
    if here or not ready.cluster.live:
        with open(ready.run.logs / "job-here.log", "ab") as log:
            return Started(None, supervise_here(ready.run, here, log))
    sent, job_id = submission.send(ready)
    say(f"job {job_id} looks at the nodes: {sent.job.layout}")
    return Started(job_id, None)


@dataclass(frozen=True)
class Started:
    job_id: str | None
    supervisor: subprocess.Popen[bytes] | None

    def alive(self, waits: dict[str, commands.QueueLine]) -> bool:
        if self.supervisor is not None:
            return self.supervisor.poll() is None
        return any(line.alive for line in waits.values())


class Watch:
    """Follows the job by what its ranks write; Slurm is asked as seldom as a supervisor asks it."""

    def __init__(self, exam: Exam, started: Started, say: Callable[[str], None]) -> None:
        self.exam, self.started, self.say = exam, started, say
        self.next_look, self.state, self.silent = 0.0, "", 0
        self.alive = True

    def until_the_end(self, prove_requeue: bool) -> None:
        exam = self.exam
        try:
            if self.wait(lambda: len(ready(exam.run, 1)) == exam.job.world_size):
                self.signal_all()
                if prove_requeue:
                    self.requeue()
            write_atomic(folder(exam.run) / "leave", "") if folder(exam.run).exists() else None
            self.wait(lambda: exam.run.over)
        except BaseException:  # also Ctrl-C
            self.cancel()
            raise
        self.collect()

    def wait(self, condition: Callable[[], bool], seconds: float = float("inf")) -> bool:
        """Whether it comes about while the run lives."""
        end = time.monotonic() + seconds
        while not condition():
            if self.exam.run.over or not self.lives() or time.monotonic() > end:
                return condition()
            time.sleep(_LOOK)
        return True

    def lives(self) -> bool:
        """Looked at now and then."""
        if self.started.job_id is None:
            return self.started.alive({})
        if self.alive and time.monotonic() >= self.next_look:
            self.next_look = time.monotonic() + self.exam.job.poll_seconds
            try:
                waits = commands.queue([self.started.job_id])
            except CommandFailed as error:
                self.silent += 1
                if self.silent == SILENT:
                    raise
                self.say(f"{error}: asked again in {self.exam.job.poll_seconds:.0f} s")
                return True
            self.silent = 0
            self.alive = self.started.alive(waits)
            for line in waits.values():
                if line.state == "PENDING" and line.reason not in ("None", self.state):
                    self.state = line.reason
                    self.say(f"it waits ({line.reason}); Ctrl-C gives it up")
        return self.alive

    def signal_all(self) -> None:
        """By the way that Slurm's own warnings take: to the step, and through the shims."""
        job_id = self.started.job_id or environment.allocation().job_id
        if job_id is None or self.exam.job.cluster == "local":  # its ranks are none of this job's steps
            return
        with suppress(CommandFailed):
            facts = commands.show_job(job_id)
            self.exam.requeue_allowed = facts.requeue if facts and self.started.job_id else None
        commands.signal_newest_step(job_id, SIGNAL)
        self.exam.signalled = True
        self.wait(lambda: all(one["heard"] for one in ready(self.exam.run, 1)), HEARD_SECONDS)

    def requeue(self) -> None:
        assert self.started.job_id is not None
        self.exam.requeued = False
        try:
            commands.requeue(self.started.job_id)
        except CommandFailed as error:
            self.exam.refused = error.words or str(error)
            return
        self.say("it is requeued: on a stock Slurm it starts again after two minutes")
        self.exam.requeued = self.wait(lambda: len(ready(self.exam.run, 2)) == self.exam.job.world_size)

    def cancel(self) -> None:
        if self.started.supervisor is not None:
            self.started.supervisor.terminate()
            self.started.supervisor.wait()
        elif self.started.job_id is not None:
            commands.cancel(self.started.job_id)

    def collect(self) -> None:
        exam = self.exam
        exam.reports = reports(exam.run, 1)
        exam.record = next(iter(exam.run.attempts()), {})
        if sum(1 for one in exam.reports if one.get("ready")) < exam.job.world_size:
            exam.words = logs.last_words(exam.run, 1) or _job_words(exam.run)


def reports(run: RunDir, attempt: int) -> list[dict[str, Any]]:
    found = []
    for file in folder(run).glob(f"attempt-{attempt}/*.json"):
        with suppress(OSError, ValueError):
            found.append(json.loads(file.read_text(encoding="utf-8")))
    return sorted(found, key=lambda one: (one.get("rank", sys.maxsize), one["host"]))


def ready(run: RunDir, attempt: int) -> list[dict[str, Any]]:
    return [one for one in reports(run, attempt) if one.get("ready")]


def _job_words(run: RunDir) -> list[str]:
    text = "".join(path.read_text(errors="replace") for path in sorted(run.logs.glob("job-*.log")))
    return text.splitlines()[-logs.LAST_WORDS :]
