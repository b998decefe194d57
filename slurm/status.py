"""How runs stand, from their folders and at most one squeue."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from durable import read_lines
from slurm import commands, launches, progress
from slurm.cause import FREE, bad_nodes, in_a_row
from slurm.errors import CommandFailed
from slurm.rundir import RunDir

MANY = 10
"""Attempts in a row that ended by no fault of the run: its user should know."""


@dataclass(frozen=True)
class RunStatus:
    name: str
    state: str
    """done, running, waiting, ended, interrupted."""
    why: str
    step: int
    """Last step that any attempt reported."""
    committed_step: int
    loss: float | None
    attempts: list[dict[str, Any]]
    jobs: dict[str, str]
    """Jobs in the queue now: id -> state and reason."""
    folder: str
    notes: list[str]
    """What its user should know beside the state."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def status(runs: Sequence[RunDir]) -> list[RunStatus]:
    """One squeue for all runs; without a Slurm the folders alone."""
    for run in runs:
        with suppress(CommandFailed, OSError):  # Slurm is away, or it is another user's run
            launches.reconcile(run)
    ids = [job for run in runs for job in _jobs(run)]
    try:
        queue = commands.queue(ids)
    except CommandFailed:
        queue = {}
    for run in runs:
        _hurry(run, queue)
    return [_status(run, queue) for run in runs]


def _hurry(run: RunDir, queue: dict[str, commands.QueueLine]) -> None:
    """Slurm lets a requeued job wait for its old credentials, 2 minutes long; its owner may cut that short."""
    claim = run.read_claim(run.newest_epoch())
    line = queue.get(claim.job_id or "") if claim is not None else None
    if line is not None and (line.state, line.reason) == ("PENDING", "BeginTime"):
        with suppress(CommandFailed):
            commands.update(line.job_id, StartTime="now")


def _jobs(run: RunDir) -> list[str]:
    """Its jobs, and the allocation that its user started it in by --here."""
    claim = run.open_claim()
    inside = [claim.job_id] if claim is not None and claim.job_id is not None else []
    return list(dict.fromkeys([*(record["job"] for record in run.jobs()), *inside]))


def _status(run: RunDir, queue: dict[str, commands.QueueLine]) -> RunStatus:
    ours = set(map(commands.sent_as, _jobs(run)))
    mine = {job: line for job, line in queue.items() if commands.sent_as(job) in ours}
    steps = [event for event in read_lines(run.events) if event.get("event") == "step"]
    state, why = _state(run, mine)
    return RunStatus(
        name=run.name,
        state=state,
        why=why,
        step=int(steps[-1]["step"]) if steps else progress.step(run) or 0,
        committed_step=run.committed_step(),
        loss=next((float(step["loss"]) for step in reversed(steps) if step["loss"] is not None), None),
        attempts=run.attempts(),
        jobs={job: f"{line.state.lower()} ({line.reason})" for job, line in mine.items()},
        folder=str(run.path),
        notes=_notes(run),
    )


def _state(run: RunDir, queue: dict[str, commands.QueueLine]) -> tuple[str, str]:
    cancelled = run.cancelled
    if run.done:
        return "done", ""
    if cancelled is not None:
        return "ended", f"{cancelled['cause']}: {cancelled['reason']}; go on with launch.py resume {run.name}"
    running = [line for line in queue.values() if line.state in ("RUNNING", "COMPLETING")]
    if running:
        return "running", f"job {running[0].job_id}, {running[0].left} left"
    if queue:
        line = next(iter(queue.values()))
        return "waiting", f"job {line.job_id} waits: {line.reason}"
    if (pid := run.supervisor_here()) is not None:
        return "running", f"here, process {pid}"
    if launches.unsettled(run) is not None:
        return "waiting", "its submission was cut short: a job may be in the queue, as soon as Slurm can be asked"
    return "interrupted", f"nothing of it is in the queue: go on with launch.py resume {run.name}"


def _notes(run: RunDir) -> list[str]:
    attempts = run.attempts()
    notes = []
    if (free := in_a_row(attempts, FREE)) >= MANY:
        steps = attempts[-1]["committed_step"] - attempts[-free]["first_step"]
        won = f"{steps} steps were committed meanwhile" if steps else "without a new committed step"
        notes.append(f"the last {free} attempts ended by preemption, node failure or requeue: {won}")
    if bad := bad_nodes(attempts, time.time()):
        notes.append(f"attempts failed twice on {', '.join(bad)}: for a day the next job keeps away, where it can")
    if (fallback := run.fallback()) is not None:
        notes.append(fallback)
    return [*notes, *(run.cancelled or {}).get("lines", [])]


def as_text(found: Sequence[RunStatus]) -> str:
    if not found:
        return "no runs yet"
    return "\n".join(line for one in found for line in _lines(one))


def _lines(one: RunStatus) -> list[str]:
    loss = f", loss {one.loss:.4f}" if one.loss is not None else ""
    lines = [f"{one.name}: {one.state}{f' ({one.why})' if one.why else ''}, step {one.step}{loss}"]
    for record in one.attempts:
        seconds = record["end"] - record["start"]
        when = time.strftime("%m-%d %H:%M", time.localtime(record["start"]))
        reason = f"  {record['reason']}" if record["reason"] else ""
        lines.append(
            f"  attempt {record['attempt']:>3}  {when}  {seconds:>7.0f} s  steps {record['first_step']:>6} to "
            f"{record['committed_step']:<6}  {record['cause']:<12}{reason}"
        )
    return [*lines, *(f"  {note}" for note in one.notes)]
