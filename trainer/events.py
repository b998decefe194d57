"""events.jsonl: what happened, a line each, written by rank 0; every line carries its epoch."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from durable import append_line, read_lines

NAME = "events.jsonl"


class Events:
    def __init__(self, run_dir: Path, epoch: int, active: bool) -> None:
        self._path, self._epoch, self._active = run_dir / NAME, epoch, active

    def write(self, event: str, **values: Any) -> None:
        """A full disk must not end the training: the line is lost, and that is said."""
        if not self._active:
            return
        try:
            append_line(self._path, {"event": event, "epoch": self._epoch, **values, "time": time.time()})
        except OSError as error:
            with suppress(OSError):  # the log lies on the same disk as a rule
                print(f"{self._path}: the event {event} could not be written: {error}", flush=True)


def read(run_dir: Path) -> list[dict[str, Any]]:
    """All events so far."""
    return read_lines(run_dir / NAME)
