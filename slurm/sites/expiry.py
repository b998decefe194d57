"""When a site removes what nobody has read for some time."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from slurm.rundir import RunDir

_DAY = 86_400.0


def expiry(run: RunDir) -> str | None:
    """Of a run that waits or has ended, in words; None: nothing is known to remove it."""
    with suppress(OSError):
        found = re.search(r"^purge_days: (\d+)$", (run.path / "job.yaml").read_text(encoding="utf-8"), re.MULTILINE)
        newest = sorted((run.path / "checkpoints").glob("step-*/MANIFEST.json"))[-1:]
        files = [run.path / "config.yaml", run.path / "code.json", *newest]
        left = days_left(files, int(found[1])) if found else None
        if found and left is not None:
            return f"{expires(left)}: the site removes what nobody reads for {found[1]} days"
    return None


def days_left(files: Iterable[Path], days: int) -> float | None:
    """Of the file that was not read, nor written, for the longest time."""
    ages = []
    for file in files:
        with suppress(OSError):
            found = file.stat()
            ages.append(time.time() - max(found.st_atime, found.st_mtime))
    return days - max(ages) / _DAY if ages else None


def expires(left: float) -> str:
    return f"expires in {left:.0f} days" if left >= 1.5 else "expires today or tomorrow" if left > 0 else "has expired"
