"""All logs of an attempt in the order of time.

Few lines say when they were written: those of logging libraries and of the supervisor do, a step's line is timed by its
event, and the last traceback of a rank that failed by the rank's end. Every other line follows the one before it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from datetime import datetime
from itertools import pairwise
from pathlib import Path

from slurm.causes.ends import events
from slurm.causes.failures import failed, job_log, whose
from slurm.causes.known_errors import TRACEBACK
from slurm.rundir import RunDir

_DAY = 86_400.0
# 2026-11-29 04:44:59,123 as of Python's logging, also in brackets; [W1129 04:44:59.1 as of C++; 04:44:59 as of ours.
_STAMP = re.compile(r"\W{0,2}(?:(\d{4}-\d\d-\d\d)[T ]|[A-Z](\d\d)(\d\d) )?(\d\d):(\d\d):(\d\d)(?:[.,](\d+))?")
_STEP = re.compile(r"step +(\d+) of ")


def merged(run: RunDir, epoch: int) -> Iterator[str]:
    """Lines of all ranks and of the job, each with whose it is."""
    claim = run.read_claim(epoch)
    start = claim.time if claim else 0.0
    logs = sorted(run.attempt_dir(epoch).glob("rank-*.log"))
    ends = {f"rank-{rank:04d}": float(end["time"]) for rank, end in failed(run, epoch).items()}
    steps = {step["step"]: step["time"] for step in events(run, epoch, "step")}
    timed = [
        (when, number, f"{whose(log)}{line}")
        for number, log in enumerate(logs)
        for when, line in _timed(_lines(log), start, ends.get(log.stem), steps if number == 0 else {})
    ]
    if claim is not None:
        log = job_log(run, claim.job_id)
        timed += [(w, -1, f"{whose(log)}{line}") for w, line in _timed(_of_attempt(log, epoch), start, None, {})]
    timed.sort(key=lambda one: one[:2])  # stable: what a log says at one time keeps its order
    return (line for _, _, line in timed)


def _lines(log: Path) -> list[str]:
    try:
        return log.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []


def _of_attempt(log: Path, epoch: int) -> list[str]:
    """What a job's log says of one attempt."""
    lines = _lines(log)
    begins = [number for number, line in enumerate(lines) if re.search(r"outlast: attempt \d+ starts", line)]
    bounds = pairwise([*begins, len(lines)])
    return next((lines[a:b] for a, b in bounds if f"outlast: attempt {epoch} starts" in lines[a]), [])


def _timed(lines: list[str], start: float, end: float | None, steps: dict[int, float]) -> Iterator[tuple[float, str]]:
    """Each line with its unix seconds, which never go back within a log."""
    tracebacks = [number for number, line in enumerate(lines) if TRACEBACK in line]
    raised = tracebacks[-1] if tracebacks and end is not None else len(lines)
    now = start
    for number, line in enumerate(lines):
        if number == raised and end is not None:
            now = max(now, end)
        step = _STEP.match(line)
        when = steps.get(int(step[1])) if step else _stamp(line, now)
        now = max(now, when or now)
        yield now, line


def _stamp(line: str, now: float) -> float | None:
    """Unix seconds that a line begins with; of one without a date the day on which the log is, or the next."""
    match = _STAMP.match(line)
    if match is None:
        return None
    day = time.localtime(now)
    date, month, of_month, hours, minutes, seconds, fraction = match.groups()
    year, month, of_month = date.split("-") if date else (day.tm_year, month or day.tm_mon, of_month or day.tm_mday)
    try:
        whole = datetime.fromisoformat(
            f"{year}-{int(month):02}-{int(of_month):02} {hours}:{minutes}:{seconds}"
        ).timestamp()
    except ValueError:  # digits that are no time
        return None
    when = whole + float(f"0.{fraction or 0}")
    return when + _DAY if date is None and when < now - _DAY / 2 else when
