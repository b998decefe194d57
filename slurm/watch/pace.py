"""How fast a run goes, when it will be done, and what it has cost: from its records and its last steps. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

import timeline

START_SECONDS = 60.0  # of an attempt that does not train, where none has ended yet that could tell
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Pace:
    """The last steps of an attempt, as the trainer told them."""

    step: int
    time: float
    """Unix seconds of the last one."""
    seconds: float
    """From one to the next, with what lies between them: evaluations, saves."""
    own_seconds: float
    """From a step to the next, where nothing lies between them."""
    tokens_per_second: float | None
    mfu: float | None
    memory_bytes: float | None


def pace_of(steps: Sequence[Record]) -> Pace | None:
    """Of step events; those of the last attempt among them count."""
    last = steps[-1] if steps else None
    if last is None:
        return None
    same = [step for step in steps if step["epoch"] == last["epoch"]]
    first = same[0]
    between = [b["time"] - a["time"] for a, b in pairwise(same) if b["step"] == a["step"] + 1]
    own = median(between or [last["seconds"]])
    done = last["step"] - first["step"]
    each = (last["time"] - first["time"]) / done if done > 0 else own
    rates = (last.get(key) for key in ("tokens_per_second", "mfu", "memory_bytes"))
    return Pace(last["step"], last["time"], max(each, 1e-6), own, *rates)


@dataclass(frozen=True)
class Forecast:
    seconds: float
    """Until the last step is done."""
    jobs: int
    """That have to start for it, beside the one that runs."""
    waits_known: bool
    """The seconds have the waits in the queue in them, as they were so far."""


def forecast(
    left: int, pace: Pace, job_left: float | None, limit: float | None, attempts: Sequence[Record]
) -> Forecast:
    """When `left` more steps are done. `job_left`: seconds of the job that runs, None: it has no end; 0: none runs.
    `limit`: of one job, in seconds."""
    work, lost, wait = left * pace.seconds, start_seconds(attempts, pace), queue_wait(attempts)
    if job_left is None or (limit is None and job_left > 0):
        return Forecast(work, 0, True)
    rest = work - job_left
    if rest <= 0:
        return Forecast(work, 0, True)
    jobs = 1 if limit is None else math.ceil(rest / max(limit - lost, limit / 2))
    return Forecast(work + jobs * (lost + (wait or 0.0)), jobs, wait is not None)


def start_seconds(attempts: Sequence[Record], pace: Pace) -> float:
    """Seconds of an attempt in which it does not train: its start, its last save."""
    lost = [
        record["end"] - record["start"] - (record["committed_step"] - record["first_step"]) * pace.seconds
        for record in attempts
        if record["committed_step"] > record["first_step"]
    ]
    return max(0.0, median(lost)) if lost else START_SECONDS


def queue_wait(attempts: Sequence[Record]) -> float | None:
    """Seconds between the end of a job and the start of the next one, as a rule; None: none has followed another."""
    pairs = zip(attempts, attempts[1:], strict=False)
    gaps = [max(0.0, after["start"] - before["end"]) for before, after in pairs if _job(before) != _job(after)]
    return median(gaps) if gaps else None


def _job(record: Record) -> tuple[object, object]:
    return record.get("job_id"), record.get("restart_count")


def gpu_hours(attempts: Sequence[Record], running: float, ranks: int) -> float:
    """Of all attempts, and of one that has run for `running` seconds on `ranks` GPUs."""
    ended = sum(seconds * (record.get("ranks") or ranks) for seconds, record in _held(attempts))
    return float(ended + running * ranks) / 3600


def allocated_seconds(attempts: Sequence[Record]) -> float:
    """For which attempts had their nodes."""
    return float(sum(seconds for seconds, _ in _held(attempts)))


def _held(attempts: Sequence[Record]) -> Iterator[tuple[float, Record]]:
    """Seconds of each attempt, and those for which its nodes had waited for it since the one before."""
    for before, record in zip([None, *attempts], attempts, strict=False):
        yield (
            record["end"] - record["start"] + waited_with_nodes(before, record.get("starter"), record["start"]),
            record,
        )


def waited_with_nodes(before: Record | None, starter: str | None, start: float) -> float:
    """Seconds between an attempt's end and the start of the next one, if that was in the same allocation."""
    same = before is not None and starter is not None and before.get("starter") == starter
    return max(0.0, start - before["end"]) if before is not None and same else 0.0


def goodput(attempts: Sequence[Record], running: float, done: int, pace: Pace | None) -> float | None:
    """Of the ended attempts, and of one that runs; None: nothing tells of steps.

    `running`, `done`: seconds and steps of the attempt that runs.
    """
    own = pace.own_seconds if pace else 0.0
    useful = sum(_useful(record, own) for record in attempts) + min(done * own, running)
    allocated = allocated_seconds(attempts) + running
    told = pace is not None or any(record.get("step_seconds") for record in attempts)
    return timeline.goodput(useful, allocated) if told and allocated > 0 else None


def _useful(record: Record, own: float) -> float:
    """Seconds of an attempt's steps that count; what its supervisor could not add up is taken from the pace."""
    told = record.get("step_seconds")
    return float((record["committed_step"] - record["first_step"]) * own if told is None else told)
