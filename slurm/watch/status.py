"""How runs stand, from their folders and at most one squeue."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property

from durable import read_tail
from slurm import commands, launches, progress
from slurm.causes import reasons
from slurm.causes.cause import FREE, bad_nodes, in_a_row
from slurm.causes.known_errors import explain
from slurm.causes.reasons import Reason
from slurm.commands import QueueLine
from slurm.errors import CommandFailed
from slurm.rundir import Claim, RunDir
from slurm.sites.expiry import expiry
from slurm.watch import pace
from slurm.watch.pace import Forecast, Pace
from slurm.watch.run_status import RunStatus

MANY = 10
"""Attempts in a row that ended by no fault of the run: its user should know."""
TAIL_OF_ONE, TAIL_OF_MANY = 1 << 16, 3 << 10  # bytes of events.jsonl: some hundred steps, some five
SILENT = 300.0  # seconds without a step after which that is said, if steps are shorter


def status(runs: Sequence[RunDir]) -> list[RunStatus]:
    """One squeue for all runs; without a Slurm the folders alone. One run is looked at closer than many."""
    one = len(runs) == 1
    for run in runs if one else ():
        with suppress(CommandFailed, OSError):  # Slurm is away, or it is another user's run
            launches.reconcile(run)
    looks = [Look(run, TAIL_OF_ONE if one else TAIL_OF_MANY) for run in runs]
    queue: dict[str, list[QueueLine]] = {}
    with suppress(CommandFailed):
        for line in commands.queue([job for look in looks for job in look.jobs], ended=True).values():
            queue.setdefault(commands.sent_as(line.job_id), []).append(line)
    for look in looks:
        sent = dict.fromkeys(map(commands.sent_as, look.jobs))
        look.queue = [line for job in sent for line in queue.get(job, ()) if line.is_one_of(look.jobs)]
        _hurry(look)
    return [_status(look, one) for look in looks]


@dataclass
class Look:
    """What a run's folder says, each file read once and of long ones the end."""

    run: RunDir
    tail: int
    """Bytes of the events that are read."""
    queue: list[QueueLine] = field(default_factory=list)
    """Its jobs as Slurm knows them."""

    def __post_init__(self) -> None:
        self.now = time.time()
        self.files = set(os.listdir(self.run.path))
        self.done = "DONE" in self.files
        self.cancelled = self.run.cancelled if "CANCELLED" in self.files else None
        self.sweep = self.run.sweep if "task" in self.files else None
        self.attempts = self.run.attempts()
        self.newest = self.run.read_claim(self.run.newest_epoch())
        self.told, self.torn = read_tail(self.run.events, self.tail)
        self.steps = [event for event in self.told if event.get("event") == "step"]

    @cached_property
    def claim(self) -> Claim | None:
        """Of the attempt whose end is not written."""
        claim = self.newest
        return None if claim and any(r["attempt"] == claim.epoch for r in self.attempts) else claim

    @cached_property
    def jobs(self) -> list[str]:
        """Its jobs, and the allocation that its user started it in by --here; none of a run that is over."""
        if self.done or self.cancelled is not None:
            return []
        inside = [self.claim.job_id] if self.claim is not None and self.claim.job_id is not None else []
        return list(dict.fromkeys([*(record["job"] for record in self.run.jobs()), *inside]))

    @property
    def running(self) -> QueueLine | None:
        return next((line for line in self.queue if line.state in ("RUNNING", "COMPLETING")), None)

    @property
    def waiting(self) -> QueueLine | None:
        return next((line for line in self.queue if line.alive and line is not self.running), None)

    @cached_property
    def pace(self) -> Pace | None:
        return pace.pace_of(self.steps)

    @property
    def step(self) -> int:
        if self.steps:
            return int(self.steps[-1]["step"])
        first = self.newest.resume_from["step"] if self.newest and self.newest.resume_from else 0
        told = progress.step(self.run) if self.run.progress_file.name in self.files else 0
        return max(told or 0, first)

    @cached_property
    def ranks(self) -> int:
        records = [record["ranks"] for record in self.attempts if record.get("ranks")]
        return (self.newest.ranks if self.newest and self.newest.ranks else None) or (records or [1])[-1]


def _hurry(look: Look) -> None:
    """Slurm lets a requeued job wait for its old credentials, 2 minutes long; its owner may cut that short."""
    job = look.newest.job_id if look.newest is not None else None
    line = next((line for line in look.queue if line.job_id == job), None)
    if line is not None and (line.state, line.reason) == ("PENDING", "BeginTime") and look.run.own:
        with suppress(CommandFailed):
            commands.update(line.job_id, StartTime="now")


def _status(look: Look, one: bool) -> RunStatus:
    run, speed = look.run, look.pace
    state, why = _state(look)
    running = look.claim if state == "running" else None
    since = running.time if running is not None else None
    seconds = 0.0
    if running is not None:
        before = look.attempts[-1] if look.attempts else None
        seconds = look.now - running.time + pace.waited_with_nodes(before, running.starter, running.time)
    first = (running.resume_from or {}).get("step", 0) if running is not None else 0
    done = look.step - first if running is not None and look.steps and look.steps[-1]["epoch"] == running.epoch else 0
    hours = pace.gpu_hours(look.attempts, seconds, look.ranks)
    ahead, work = _ahead(look, state)
    begins = look.waiting.start if look.waiting is not None and state == "waiting" else None
    return RunStatus(
        name=run.name,
        state=state,
        why=why.meaning,
        do=why.do.format(run=run.name, job=_job(look), log=f"{run.logs}/job-{_job(look)}.log"),
        step=look.step,
        total_steps=look.newest.total_steps if look.newest is not None else None,
        committed_step=run.committed_step(),
        loss=next((float(step["loss"]) for step in reversed(look.steps) if step["loss"] is not None), None),
        seconds_per_step=speed.seconds if speed else None,
        tokens_per_second=speed.tokens_per_second if speed else None,
        mfu=speed.mfu if speed else None,
        memory_bytes=speed.memory_bytes if speed else None,
        ends=max(look.now, begins or 0.0) + ahead.seconds if ahead else None,
        jobs_to_come=ahead.jobs if ahead else 0,
        waits_known=ahead.waits_known if ahead else True,
        goodput=pace.goodput(look.attempts, seconds, done, speed),
        gpu_hours=hours,
        gpu_hours_expected=hours + work * look.ranks / 3600 if ahead else None,
        running_since=since,
        next_start=look.waiting.start if look.waiting is not None else None,
        attempts=look.attempts,
        jobs={line.job_id: f"{line.state.lower()} ({line.reason})" for line in look.queue if line.alive},
        folder=str(run.path),
        sweep=None if look.sweep is None else str(look.sweep.path),
        expires=expiry(run) if one else None,
        notes=_notes(look),
    )


def _job(look: Look) -> str:
    """The job that a word is about."""
    line = look.waiting or look.running or (look.queue[-1] if look.queue else None)
    return line.job_id if line is not None else str(look.newest.job_id if look.newest else None)


# --- how it stands --------------------------------------------------------------------------------------


def _state(look: Look) -> tuple[str, Reason]:
    run, resume = look.run, "launch.py resume {run}"
    if look.done:
        return "done", Reason("")
    if look.cancelled is not None:
        known = explain(look.cancelled.get("lines") or [look.cancelled["reason"]], {})
        mend = f"{known.change}; then " if known else ""
        meaning = f": {known.meaning}" if known else ""
        return "ended", Reason(f"{look.cancelled['cause']}: {look.cancelled['reason']}{meaning}", f"{mend}{resume}")
    if look.running is not None:
        stopping = ", saves and ends" if run.stop_file.name in look.files else ""
        return "running", Reason(f"job {look.running.job_id}, {look.running.left} left{stopping}")
    if look.waiting is not None:
        reason = reasons.waiting(look.waiting.reason)
        return "waiting", reason._replace(meaning=f"job {look.waiting.job_id} waits: {reason.meaning}")
    if (pid := run.supervisor_of(look.newest)) is not None:
        return "running", Reason(f"here, process {pid}")
    if any(launches.unsettled(each) is not None for each in (run, look.sweep) if each):
        text = "its submission was cut short: a job may be in the queue, as soon as Slurm can be asked"
        return "waiting", Reason(text, "launch.py status {run}")
    if look.queue:
        line = look.queue[-1]
        reason = reasons.ended(line.state, line.reason)
        return "interrupted", reason._replace(meaning=f"job {line.job_id} has ended: {reason.meaning}")
    return "interrupted", Reason("nothing of it is in the queue", resume)


def _ahead(look: Look, state: str) -> tuple[Forecast | None, float]:
    """When its last step is done, and the seconds of an allocation until then."""
    total = look.newest.total_steps if look.newest is not None else None
    if state not in ("running", "waiting") or look.pace is None or not total:
        return None, 0.0
    line, deadline = look.running or look.waiting, None
    if look.run.deadline_file.name in look.files:  # else it has no time limit
        with suppress(OSError, ValueError):
            deadline = float(look.run.deadline_file.read_text())
    left = 0.0 if state == "waiting" else None if deadline is None else max(0.0, deadline - look.now)
    limit = line.limit.total_seconds() if line is not None and line.limit is not None else None
    ahead = pace.forecast(total - look.step, look.pace, left, limit, look.attempts)
    lost = ahead.jobs * pace.start_seconds(look.attempts, look.pace)
    return ahead, (total - look.step) * look.pace.seconds + lost


def _notes(look: Look) -> list[str]:
    run, attempts = look.run, look.attempts
    notes = []
    if (free := in_a_row(attempts, lambda one: one["cause"] in FREE)) >= MANY:
        steps = attempts[-1]["committed_step"] - attempts[-free]["first_step"]
        won = f"{steps} steps were committed meanwhile" if steps else "without a new committed step"
        notes.append(f"the last {free} attempts ended by preemption, node failure or requeue: {won}")
    if bad := bad_nodes(attempts, look.now):
        notes.append(f"attempts failed on {', '.join(bad)}: for a day the next job keeps away, where it can")
    if "fallback" in look.files and (fallback := run.fallback()) is not None:
        notes.append(fallback)
    speed, claim = look.pace, look.claim
    if speed is not None and claim is not None and look.running is not None and look.steps[-1]["epoch"] == claim.epoch:
        silent = look.now - speed.time
        if silent > max(SILENT, 20 * speed.seconds):
            notes.append(f"its last step was {silent / 60:.0f} minutes ago: launch.py logs {run.name} --all")
    if look.torn:
        notes.append(f"{look.torn} torn line{'s' * (look.torn != 1)} of events.jsonl, as a kill leaves them, left out")
    return [*notes, *(look.cancelled or {}).get("lines", [])]


def summary(name: str, found: Sequence[RunStatus]) -> str:
    counts = Counter(one.state for one in found)
    return f"{name}: {len(found)} runs: {', '.join(f'{count} {state}' for state, count in counts.items())}"
