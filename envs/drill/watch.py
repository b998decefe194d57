"""What a run's folder says: its events, and what counts of them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any, TypeVar

from durable import read_lines
from slurm.rundir import RunDir
from trainer.records.events import in_line

T = TypeVar("T")
PATIENCE = 180.0
"""Seconds without what is awaited, after which a drill gives up: an attempt starts in far less."""


class Silent(Exception):
    """What was awaited did not come."""


def wait_until(condition: Callable[[], T], what: str, seconds: float = PATIENCE) -> T:
    """The first truthy value of `condition`. Raises Silent."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > end:
            raise Silent(f"waited {seconds:.0f} s in vain for {what}")
        time.sleep(0.01)
    return value


def events(run: RunDir, kind: str, epoch: int | None = None) -> list[dict[str, Any]]:
    """What the ranks told of this kind, in one attempt or in all."""
    return [e for e in read_lines(run.events) if e.get("event") == kind and epoch in (None, e["epoch"])]


def history(run: RunDir, *keys: str) -> list[tuple[Any, ...]]:
    """The steps that count, in order, with these values."""
    kept = [event for event in in_line(read_lines(run.events)) if event["event"] == "step"]
    return [tuple(event[key] for key in ("step", *keys)) for event in sorted(kept, key=lambda event: event["step"])]


def weights(run: RunDir) -> str:
    """SHA-256 of the exported weights of a run that is done."""
    return str(json.loads((run.path / "DONE").read_text())["sha256"])


def last_step(run: RunDir, epoch: int) -> int:
    """The last step that an attempt has told; what it resumed from, when it has done none."""
    told = [event["step"] for kind in ("resume", "step") for event in events(run, kind, epoch)]
    return max(told, default=0)
