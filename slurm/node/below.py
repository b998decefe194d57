"""The processes below this one, as /proc shows them: whatever stands between two shims, a signal finds the lower one.

Process ids are those of the reader's own namespace, so a shim outside a container sees the ones inside.
Standard library only: every rank's shim imports it.
"""

from __future__ import annotations

import ctypes
import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

SHIM = "outlast-shim"
RANK = "outlast-rank"
_PR_SET_PDEATHSIG, _PR_SET_NAME, _PR_SET_CHILD_SUBREAPER = 1, 15, 36
_libc = ctypes.CDLL(None)  # loaded before any fork


def call_me(name: str) -> None:
    """This process's name in /proc and in `ps`, until it runs another program."""
    _libc.prctl(_PR_SET_NAME, name.encode())


def adopt_orphans() -> None:
    """What loses its parent below this process becomes its child: nothing of an attempt gets out of sight."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(signum: int) -> None:
    """Have the kernel send this process a signal when its parent ends."""
    _libc.prctl(_PR_SET_PDEATHSIG, signum)


def shims_below(pid: int) -> list[int]:
    """The nearest shims below a process; what is below these is theirs."""
    return [found for found, name in _walk(pid) if name == SHIM]


def all_below(pid: int) -> list[int]:
    """Every process below a process."""
    return [found for found, _ in _walk(pid, stop="")]


def _walk(pid: int, stop: str = SHIM) -> Iterator[tuple[int, str]]:
    """Process id and name of all that lives below `pid`, not going on below one that is called `stop`."""
    children = _children()
    waiting = [pid]
    while waiting:
        for found, name in children[waiting.pop()]:
            yield found, name
            if name != stop:
                waiting.append(found)


def _children() -> dict[int, list[tuple[int, str]]]:
    """Process id and name of the living children of every process; none where /proc is not this namespace's own."""
    table: dict[int, list[tuple[int, str]]] = defaultdict(list)
    for entry in filter(str.isdigit, os.listdir("/proc") if _proc_is_ours() else []):
        with suppress(OSError):  # it has just ended
            head, _, rest = Path(f"/proc/{entry}/stat").read_text(errors="replace").rpartition(")")
            state, parent = rest.split()[:2]
            if state != "Z":
                table[int(parent)].append((int(entry), head.partition("(")[2]))
    return table


def _proc_is_ours() -> bool:
    """A namespace of its own with the /proc of another one would show numbers that mean other processes here."""
    try:
        return os.readlink("/proc/self") == str(os.getpid())
    except OSError:
        return False
