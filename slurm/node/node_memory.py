"""Where a node's ranks keep what they staged last: in its memory, for the run's next attempt there. Standard library
only: every rank's shim imports it."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

ROOT = Path("/dev/shm")
_FILE = re.compile(r"\d{4,}-rank-(\d{4,})\..+")


def folder(run_dir: Path) -> Path:
    """Of this user's run; the trainer makes it, for the user alone."""
    return ROOT / f"outlast-{os.getuid()}-{run_dir.name}-{zlib.crc32(os.fsencode(run_dir)):08x}"


def forget(run_dir: Path, ranks: Collection[int] | None = None) -> None:
    """What these ranks keep there goes; None: all of it."""
    with suppress(OSError):
        for file in folder(run_dir).iterdir():
            if (match := _FILE.fullmatch(file.name)) and (ranks is None or int(match[1]) in ranks):
                file.unlink(missing_ok=True)
        folder(run_dir).rmdir()  # refused while others' lie there
