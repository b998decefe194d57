"""How far a foreign command has come, as far as files tell: those that --progress GLOB matches, and the number in the
file that $OUTLAST_PROGRESS names. What counts is what has changed in an attempt, never a clock."""

from __future__ import annotations

import glob
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from durable import write_atomic
from slurm.rundir import RunDir


def step(run: RunDir) -> int | None:
    """The number that the program wrote; None: none yet."""
    with suppress(OSError, ValueError, IndexError, OverflowError):  # none, or not yet whole
        return int(float(run.progress_file.read_text().split()[0]))
    return None


def reached(run: RunDir) -> int:
    """The step that is saved: of the trainer, or as the program wrote."""
    return run.committed_step() or step(run) or 0


def remember(run: RunDir, pattern: str | None, epoch: int) -> None:
    """What there is before an attempt, for `since`."""
    write_atomic(_start(run, epoch), json.dumps(_now(run, pattern)))


def since(run: RunDir, pattern: str | None, epoch: int) -> dict[str, Any]:
    """An attempt's steps and `progress`, for its record: None where neither a file nor a number tells it."""
    before = now = _now(run, pattern)
    with suppress(OSError, ValueError):  # nothing was noted: no rank was started
        before = json.loads(_start(run, epoch).read_text(encoding="utf-8"))
    first, last = before["step"] or 0, now["step"] or 0
    known = pattern is not None or now["step"] is not None
    newer = any(changed > before["files"].get(path, -1) for path, changed in now["files"].items())
    progress = newer if pattern is not None else last > first
    return {"first_step": first, "committed_step": last, "progress": progress if known else None}


def _now(run: RunDir, pattern: str | None) -> dict[str, Any]:
    return {"step": step(run), "files": {} if pattern is None else _matches(run, pattern)}


def _start(run: RunDir, epoch: int) -> Path:
    return run.attempt_dir(epoch) / "progress.json"


def _matches(run: RunDir, pattern: str) -> dict[str, int]:
    """When each match was last written, by its path: relative to the working folder, or to the run's."""
    places = (Path.cwd(), run.path)
    found = {place / name for place in places for name in glob.glob(pattern, root_dir=place, recursive=True)}
    return {str(path): _written(path) for path in found}


def _written(path: Path) -> int:
    """Of a folder: its own names or a file in it, since a checkpoint may be overwritten in place."""
    inside = [path]
    with suppress(OSError):
        inside += [Path(entry) for entry in os.scandir(path)]
    times = [0]
    for one in inside:
        with suppress(OSError):  # it has just been removed
            times.append(one.stat().st_mtime_ns)
    return max(times)
