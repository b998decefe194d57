"""Who owns the run: `claims/0007.json`, one for every start of the ranks. Its number is the epoch."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from typing import Any

from durable import nonce, write_atomic
from trainer.checkpoint import Point

_NAME = re.compile(r"(\d{4,})\.json")


def epochs(run_dir: Path) -> list[int]:
    """Claims so far, oldest first."""
    try:
        names = os.listdir(run_dir / "claims")
    except FileNotFoundError:  # any other error says nothing about who owns the run
        names = []
    return sorted(int(match[1]) for match in map(_NAME.fullmatch, names) if match)


def claim(run_dir: Path) -> int:
    """The next epoch, ours alone (O_EXCL): where no supervisor is that claims for us."""
    (run_dir / "claims").mkdir(exist_ok=True)
    while True:
        epoch = max(epochs(run_dir), default=0) + 1
        try:
            fd = os.open(_path(run_dir, epoch), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            continue
        record = {"epoch": epoch, "job_id": None, "restart_count": 0, "time": time.time()}
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            json.dump({**record, "host": os.uname().nodename, "nonce": nonce()}, file)
        return epoch


def born(run_dir: Path) -> float:
    """When the run began: unix seconds of its first claim."""
    return float(read(run_dir, 1).get("time", 0.0))


def fenced(run_dir: Path, epoch: int) -> bool:
    """A later attempt has claimed the run: this one must not commit any more."""
    return max(epochs(run_dir), default=0) > epoch


def note_resume(run_dir: Path, epoch: int, point: Point, total_steps: int) -> None:
    """Add to our claim where we resumed; whatever an earlier epoch commits beyond that point does not count.

    `total_steps`: of the whole run, so that who looks knows how far it is without a reading of the events.
    """
    note(run_dir, epoch, resume_from=point._asdict(), total_steps=total_steps)


def note(run_dir: Path, epoch: int, **facts: Any) -> None:
    """Add to our claim."""
    write_atomic(_path(run_dir, epoch), json.dumps({**read(run_dir, epoch), "epoch": epoch, **facts}))


def first(run_dir: Path, fact: str) -> Any:
    """Of the first claim that has it; None: none has."""
    values = (read(run_dir, epoch).get(fact) for epoch in epochs(run_dir))
    return next((value for value in values if value is not None), None)


def resume_points(run_dir: Path) -> dict[int, Point]:
    """Where each epoch resumed, as far as it came to say so."""
    found = {epoch: read(run_dir, epoch).get("resume_from") for epoch in epochs(run_dir)}
    return {epoch: Point(**point) for epoch, point in found.items() if point}


def _path(run_dir: Path, epoch: int) -> Path:
    return run_dir / "claims" / f"{epoch:04d}.json"


def read(run_dir: Path, epoch: int) -> dict[str, Any]:
    """An epoch's claim."""
    try:
        return dict(json.loads(_path(run_dir, epoch).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError):  # its writer died before the content was written
        return {}
