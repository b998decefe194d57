"""strace on a thread that waits: what it calls from then on, one call of it killed or failed, and its log read."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

needs_strace = pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed: apt-get install strace")

MUTATING = {
    *("openat", "close", "write", "pwrite64", "writev", "fallocate", "ftruncate", "fsync", "fdatasync"),
    *("sync_file_range", "mkdir", "rename", "renameat", "renameat2", "unlink", "unlinkat", "rmdir", "link", "symlink"),
}


class Strace:
    def __init__(self, thread: int, log: Path, *options: str) -> None:
        """When this returns no call of the thread is missed."""
        self._log = log
        argv = ["strace", "-y", "-o", str(log), "-p", str(thread), *options]
        self._process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
        assert self._process.stderr is not None
        said = self._process.stderr.readline()
        assert "attached" in said, said

    def end(self, gone: bool = False) -> list[str]:
        """The thread goes on untraced, or is gone. Returns the lines of its calls."""
        if not gone:
            self._process.terminate()
        self._process.communicate()
        return self._log.read_text().splitlines()


class Call(NamedTuple):
    name: str
    number: int
    """Among the calls of that name, from 1."""
    inside: bool
    """It is about something in the run's folder."""

    @property
    def mutates(self) -> bool:
        return self.inside and self.name in MUTATING


def calls(lines: Sequence[str], run_dir: Path) -> Iterator[Call]:
    """Of one thread."""
    counts = Counter[str]()
    for line in lines:
        if match := re.match(r"(\w+)\(", line):
            name = match[1]
            counts[name] += 1
            yield Call(name, counts[name], str(run_dir) in line)
