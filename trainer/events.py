"""events.jsonl: what happened, a line each, written by rank 0; every line carries its epoch."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

NAME = "events.jsonl"


class Events:
    def __init__(self, run_dir: Path, epoch: int, active: bool) -> None:
        self._epoch = epoch
        self._fd = -1
        if active:
            path = run_dir / NAME
            self._fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            size = os.fstat(self._fd).st_size
            if size and os.pread(self._fd, 1, size - 1) != b"\n":
                os.write(self._fd, b"\n")  # an earlier attempt was killed within a line

    def write(self, event: str, **values: Any) -> None:
        """One line by one write, so that two writers never mix within a line."""
        if self._fd >= 0:
            record = {"event": event, "epoch": self._epoch, **values, "time": time.time()}
            os.write(self._fd, (json.dumps(record) + "\n").encode())


def read(run_dir: Path) -> list[dict[str, Any]]:
    """All events so far; a torn line is dropped."""
    found = []
    path = run_dir / NAME
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            found.append(record)
    return found
