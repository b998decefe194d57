"""events.jsonl: what happened, a line each, by rank 0; it carries its epoch, and a hash of the line before it.

trainer/records/history.py reads a whole run's.
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from xxhash import xxh3_64_hexdigest

from durable import append_line, last_line, read_lines

NAME = "events.jsonl"


def line_hash(line: bytes) -> str:
    """What the next line carries as its `chain`, of a line without its newline. It shows a change, and holds up nobody
    who computes all further ones anew."""
    return xxh3_64_hexdigest(line)


class Events:
    def __init__(self, run_dir: Path, epoch: int, active: bool) -> None:
        self._path, self._epoch, self._active = run_dir / NAME, epoch, active

    def write(self, event: str, **values: Any) -> None:
        """A full disk must not end the training: the line is lost, and that is said."""
        if not self._active:
            return
        try:
            line = {"event": event, "epoch": self._epoch, **values, "time": time.time()}
            append_line(self._path, line, link=line_hash)
        except OSError as error:
            with suppress(OSError):  # the log lies on the same disk as a rule
                print(f"{self._path}: the event {event} could not be written: {error}", flush=True)


def last_hash(run_dir: Path) -> str | None:
    """Of the last line: what a next one would carry. None: it cannot be read."""
    try:
        with open(run_dir / NAME, "rb") as file:
            return line_hash(last_line(file.fileno()).rstrip(b"\n"))
    except OSError:
        return None


def read(run_dir: Path) -> list[dict[str, Any]]:
    """All events so far."""
    return read_lines(run_dir / NAME)


def in_line(told: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those of the run's one line of history: an attempt counts up to where a later one resumed."""
    resumed = [(event["epoch"], event["step"]) for event in told if event["event"] == "resume"]
    return [
        event
        for event in told
        if all(event.get("step", 0) <= step for epoch, step in resumed if epoch > event["epoch"])
    ]
