"""This node: the memory it has left, how a process that trains there keeps hold of its own, and what its CPU can do."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_CACHE = ("inactive_file", "active_file")  # pages that the kernel gives back when they are wanted


def memory_left(root: Path = Path("/")) -> int:
    """Bytes that may still be taken here: of the node, and within each control group that this process is in."""
    node = _numbers(root / "proc/meminfo")["MemAvailable:"] * 1024
    return min([node, *_left_in_groups(root)])


def _left_in_groups(root: Path) -> Iterator[int]:
    for line in (root / "proc/self/cgroup").read_text().splitlines():  # hierarchy:controllers:path
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        most, used = ("limit_in_bytes", "usage_in_bytes") if controllers else ("max", "current")
        group = top / path.lstrip("/")
        for folder in (group, *(parent for parent in group.parents if parent.is_relative_to(top))):
            with suppress(OSError, ValueError):  # no such group here, or it says `max`: no limit
                limit = int((folder / f"memory.{most}").read_text())
                stat = _numbers(folder / "memory.stat")
                cached = sum(stat.get(f"total_{name}" if controllers else name, 0) for name in _CACHE)
                yield limit - int((folder / f"memory.{used}").read_text()) + cached


def _numbers(file: Path) -> dict[str, int]:
    lines = (line.split() for line in file.read_text().splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdigit()}


# --- what a step frees, the next one takes again ------------------------------------------------------------

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # malloc.h


def keep_freed_memory() -> None:
    """From here on what is freed stays with this process. glibc gives large blocks back to the kernel, which clears
    each page anew when the next step asks for them: measured, 17 % of a step at 5 million parameters, 12 % at 33."""
    with suppress(AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_TRIM_THRESHOLD, -1)
        if not mallopt(_MMAP_THRESHOLD, 2**31 - 1):  # an older glibc takes no more than 32 MiB
            mallopt(_MMAP_MAX, 0)


# --- numbers that the CPU has instructions for ---------------------------------------------------------------

_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # the last is ARM's


def multiplies_bf16(root: Path = Path("/")) -> bool:
    """This CPU has instructions for it, as far as is known. One without takes 2 to 3 times as long as in fp32."""
    try:
        return not _FLAGS.isdisjoint((root / "proc/cpuinfo").read_text().split())
    except OSError:  # no Linux
        return True
