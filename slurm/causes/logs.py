"""Reading a run's logs: one rank's lines, all ranks' in the order of time, and over all attempts as they come."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from slurm.causes.failures import ended_from_outside, failed, failure, first_failure, rank_log, tail, whose
from slurm.rundir import RunDir

LAST_LINES = 40
LAST_WORDS = 12  # lines of a rank that a message carries
Emit = Callable[[str], None]
# Not line breaks, tabs, and what colours a text.
_CONTROL = re.compile(r"\x1b(?!\[[0-9;]*m)|[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """What a program, a row of data or a colleague's folder has written, without what a terminal would obey."""
    return _CONTROL.sub("\u241b", text)


def srun_words(log: Path, start: int) -> str:
    """Why srun could not start a step: its first error, or else its first line, in a job's log after byte `start`."""
    words = [line.removeprefix("srun: ") for line in lines_after(log, start) if line.startswith("srun: ")]
    errors = [line.removeprefix("error: ") for line in words if line.startswith("error: ")]
    return [*errors, *words, ""][0]


def unfit_node(log: Path, start: int) -> tuple[str, str] | None:
    """The first node that a shim has found to be no place for ranks, and why; in a job's log after byte `start`."""
    found = (re.fullmatch(r"outlast: (\S+) is unfit: (.+)", line) for line in lines_after(log, start))
    return next(((match[1], match[2]) for match in found if match), None)


def lines_after(log: Path, start: int) -> list[str]:
    try:
        return log.read_bytes()[start:].decode(errors="replace").splitlines()
    except OSError:
        return []


def last_words(run: RunDir, epoch: int) -> list[str]:
    """The last lines of the rank that failed first, each cut to a length that a terminal bears."""
    return [line[:300] for line in (as_json(run, attempt=epoch)["lines"] or [])[-LAST_WORDS:]]


def as_json(run: RunDir, rank: int | None = None, attempt: int | None = None) -> dict[str, Any]:
    """What `show` says, for a script; `lines` is null where there is no such log."""
    epoch = attempt or run.newest_epoch()
    first = first_failure(run, epoch)
    chosen = (first or 0) if rank is None else rank
    path = rank_log(run, epoch, chosen)
    lines = tail(path)[-LAST_LINES:] if path.exists() else None
    about = failure(run, epoch, chosen)
    end = {key: about.end[key] for key in ("code", "signal", "host", "time") if about.end.get(key) is not None}
    found = {"run": run.name, "attempt": epoch, "rank": chosen, "failed_first": first, "path": str(path)}
    found |= {"lines": lines, "end": end}
    meaning, change = (about.known.meaning, about.known.change) if about.known else (None, None)
    return {**found, "exception": about.exception, "meaning": meaning, "change": change}


def show(run: RunDir, rank: int | None = None, attempt: int | None = None) -> str:
    """The last lines of one rank's log, with a heading; of a rank that failed with what it raised, and what that
    means."""
    found = as_json(run, rank, attempt)
    epoch, chosen = found["attempt"], found["rank"]
    if epoch == 0:
        return f"{run.name} has not started yet: see launch.py status {run.name}"
    if found["lines"] is None:
        what = f"attempt {epoch} has no log of rank {chosen}"
        return f"{what} ({found['path']}); the job's own log: {_job_logs(run)}"
    heading = f"== {run.name}, attempt {epoch}, rank {chosen}: {os.path.relpath(found['path'])}"
    return "\n".join([heading, *found["lines"], *_verdict(run, epoch, chosen), *_elsewhere(run, epoch, attempt)])


def _verdict(run: RunDir, epoch: int, rank: int) -> list[str]:
    """How a rank ended, what that means, and what to change."""
    crashed, about = failed(run, epoch), failure(run, epoch, rank)
    outside, first = ended_from_outside(run, epoch), first_failure(run, epoch)
    if outside is not None:
        lines = [f"== all ranks were ended from outside, none failed first: {outside}"]
    elif rank in crashed and first is None:
        return [f"== {about.words}: ended as it was asked to, no rank failed"]
    elif rank in crashed or rank == first:
        others = len(crashed) - (rank in crashed)
        order = "it failed first; " if rank == first and others else ""
        after = f" ({order}{others} other{'s' * (others != 1)} did not end well)" if others else ""
        lines = [f"== {about.words}{after}", *([f"   {about.exception}"] if about.exception else [])]
    else:
        return []
    if about.known:
        lines += [f"   it means: {about.known.meaning}", f"   change:   {about.known.change}"]
    return lines


def _elsewhere(run: RunDir, epoch: int, asked: int | None) -> list[str]:
    """Where to look when the newest attempt has not failed, and the one before it has."""
    earlier = [record for record in run.attempts() if record["attempt"] == epoch - 1]
    if asked is not None or failed(run, epoch) or not earlier or not failed(run, epoch - 1):
        return []
    said = f"attempt {epoch - 1} ended by {earlier[0]['cause']}"
    return [f"== {said}: launch.py logs {run.name} --attempt {epoch - 1}"]


def _job_logs(run: RunDir) -> str:
    return ", ".join(str(path) for path in sorted((run.path / "logs").glob("job-*.log"))) or "none yet"


# --- as they come ---------------------------------------------------------------------------------------


class Follower:
    """New lines of an attempt's logs; of several logs each line says whose it is."""

    def __init__(self, run: RunDir, epoch: int, rank: int | None, emit: Emit) -> None:
        self._run, self._epoch, self._rank, self._emit = run, epoch, rank, emit
        self._positions: dict[Path, int] = {}

    def look(self, last: bool) -> None:
        """`last`: also what is not a whole line yet."""
        for path in self._logs():
            mark = whose(path) if self._rank is None else ""
            lines, self._positions[path] = new_lines(path, self._positions.get(path, 0), last)
            for line in lines:
                self._emit(printable(f"{mark}{line}"))

    def _logs(self) -> list[Path]:
        if self._rank is not None:
            return [rank_log(self._run, self._epoch, self._rank)]
        return sorted(self._run.attempt_dir(self._epoch).glob("rank-*.log"))


def follow(
    run: RunDir,
    rank: int | None,
    alive: Callable[[], bool],
    emit: Emit = print,
    beside: Callable[[], None] = lambda: None,
) -> None:
    """Print new lines of a rank's log (None: of all ranks'), attempt after attempt, until the run is over or `alive`
    says no. `beside` is called after each look."""
    epoch = max(1, run.newest_epoch())
    logs = Follower(run, epoch, rank, emit)
    while True:
        more = alive() and not run.over  # looked at before reading, so that the last lines are read after the end
        logs.look(last=not more)
        beside()
        if epoch < run.newest_epoch():
            logs.look(last=True)
            _tell_end(run, epoch, emit)
            epoch += 1
            logs = Follower(run, epoch, rank, emit)
            emit(f"== attempt {epoch}")
        elif not more:
            return _tell_end(run, epoch, emit)
        else:
            time.sleep(0.2)


def _tell_end(run: RunDir, epoch: int, emit: Emit) -> None:
    """Of an attempt that failed: who failed first, and what that means."""
    for line in _verdict(run, epoch, first_failure(run, epoch) or 0):
        emit(line)


def new_lines(path: Path, position: int, last: bool) -> tuple[list[str], int]:
    """The complete lines after byte `position`, at the `last` look also a torn one, and the new position."""
    with suppress(FileNotFoundError), open(path, "rb") as file:
        file.seek(position)
        data = file.read()
        end = len(data) if last else data.rfind(b"\n") + 1
        return data[:end].decode(errors="replace").splitlines(), position + end
    return [], position
