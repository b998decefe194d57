"""Whether the kernel ended a process for want of memory, as its own counters tell. Standard library only: every rank's
shim imports it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

ROOT = Path("/")


def oom_kills(root: Path = ROOT) -> dict[Path, int]:
    """Processes that the kernel's out-of-memory killer ended so far, by the counter's file: of this process's own
    control group first, then of those around it, of the whole node last. A rank is where its shim is."""
    counts = ((file, _count(file)) for file in (*_of_groups(root), root / "proc/vmstat"))
    return {file: count for file, count in counts if count is not None}


def struck_since(before: dict[Path, int]) -> bool:
    """Whether the narrowest counter that can still be read has risen: wider ones count other jobs' processes too."""
    counts = ((count, _count(file)) for file, count in before.items())
    return next((now > count for count, now in counts if now is not None), False)


def _of_groups(root: Path) -> Iterator[Path]:
    """Counters of the memory control groups that this process is in, the innermost first."""
    text = ""
    with suppress(OSError):
        text = (root / "proc/self/cgroup").read_text()
    for line in text.splitlines():  # hierarchy:controllers:path; version 2 names no controllers
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        group = top / path.lstrip("/")
        around = [parent for parent in group.parents if parent.is_relative_to(top)]
        yield from (folder / ("memory.oom_control" if controllers else "memory.events") for folder in (group, *around))


def _count(file: Path) -> int | None:
    """None: there is no such counter here."""
    with suppress(OSError, ValueError):
        for line in file.read_text().splitlines():
            name, _, number = line.partition(" ")
            if name == "oom_kill":
                return int(number)
    return None
