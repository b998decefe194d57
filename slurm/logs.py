"""Reading a run's logs: one rank's lines, over all its attempts when they are followed."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from slurm.exits import AGREED
from slurm.rundir import RunDir
from slurm.step import read_exits

LAST_LINES = 40


def rank_log(run: RunDir, epoch: int, rank: int) -> Path:
    return run.attempt_dir(epoch) / f"rank-{rank:04d}.log"


def first_failure(run: RunDir, epoch: int) -> int:
    """The rank that crashed first in an attempt, else rank 0."""
    ends = read_exits(run.attempt_dir(epoch)).values()
    crashed = [end for end in ends if end.get("code") not in AGREED]
    # A rank that was killed because another crashed is not where one should look.
    own = [end for end in crashed if end.get("signal") is None] or crashed
    return int(min(own, key=lambda end: end["time"])["rank"]) if own else 0


def as_json(run: RunDir, rank: int | None = None, attempt: int | None = None) -> dict[str, Any]:
    """What `show` says, for a script; `lines` is null where there is no such log."""
    epoch = attempt or run.newest_epoch()
    chosen = first_failure(run, epoch) if rank is None else rank
    path = rank_log(run, epoch, chosen)
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:] if path.exists() else None
    return {"run": run.name, "attempt": epoch, "rank": chosen, "path": str(path), "lines": lines}


def show(run: RunDir, rank: int | None = None, attempt: int | None = None) -> str:
    """The last lines of one rank's log, with a heading."""
    found = as_json(run, rank, attempt)
    if found["attempt"] == 0:
        return f"{run.name} has not started yet: see launch.py status {run.name}"
    if found["lines"] is None:
        what = f"attempt {found['attempt']} has no log of rank {found['rank']}"
        return f"{what} ({found['path']}); the job's own log: {_job_logs(run)}"
    heading = f"== {run.name}, attempt {found['attempt']}, rank {found['rank']}: {found['path']}"
    return "\n".join([heading, *found["lines"]])


def _job_logs(run: RunDir) -> str:
    return ", ".join(str(path) for path in sorted((run.path / "logs").glob("job-*.log"))) or "none yet"


def follow(run: RunDir, rank: int, alive: Callable[[], bool], emit: Callable[[str], None] = print) -> None:
    """Print new lines of a rank's log, attempt after attempt, until the run is over or `alive` says no."""
    epoch, position = max(1, run.newest_epoch()), 0
    while True:
        more = alive() and not run.over  # looked at before reading, so that the last lines are read after the end
        position = _emit_new(rank_log(run, epoch, rank), position, emit, last=not more)
        if epoch < run.newest_epoch():
            _emit_new(rank_log(run, epoch, rank), position, emit, last=True)
            epoch, position = epoch + 1, 0
            emit(f"== attempt {epoch}")
        elif not more:
            return
        else:
            time.sleep(0.2)


def _emit_new(path: Path, position: int, emit: Callable[[str], None], last: bool) -> int:
    """Print the complete lines after byte `position`, at the `last` look also a torn one. Returns the new position."""
    with suppress(FileNotFoundError), open(path, "rb") as file:
        file.seek(position)
        data = file.read()
        end = len(data) if last else data.rfind(b"\n") + 1
        for line in data[:end].decode(errors="replace").splitlines():
            emit(line)
        return position + end
    return position
