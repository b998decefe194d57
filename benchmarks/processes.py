"""Measures whole processes as a person starts them: seconds, memory, file-system calls, imports."""

from __future__ import annotations

import os
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

Command = list[str]

STRACE = shutil.which("strace") or "strace"
TRACED = "%file,getdents64"
"""Every system call that takes a path (open, stat, access, readlink, execve ...), and the reading of folders."""

PATIENCE = 120  # seconds that the slowest command may take on a loaded machine

# ru_maxrss counts what a process was before its exec, so a child of a large parent looks large: a bare interpreter
# without site packages, smaller than anything measured here, stands between.
PEAK = """
import os, sys
quiet = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
child = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=quiet)
print(os.wait4(child, 0)[2].ru_maxrss)
"""


class Unable(Exception):
    """A command of ours, without which there is nothing to measure, does not run here."""


@dataclass(frozen=True)
class Sample:
    """Milliseconds of one process and its children."""

    wall: float
    cpu: float
    """User and system; a neighbour on the same cores changes it less than the wall clock."""


@dataclass(frozen=True)
class Import:
    module: str
    depth: int
    """0: imported by the script itself."""
    ms: float
    """With all that it imported."""


def failure(command: Command) -> str | None:
    """Run it once, which also warms the page cache and compiles modules. Its last words when it fails."""
    try:
        done = _run(command)
    except FileNotFoundError:
        return f"{Path(command[0]).name} is not installed"
    except subprocess.TimeoutExpired:
        return f"had not ended after {PATIENCE} s"
    return last_line(done.stderr) or f"exit code {done.returncode}" if done.returncode else None


def interleaved(commands: Mapping[str, Command], rounds: int) -> dict[str, list[Sample]]:
    """Each command once a round, so that a neighbour's load meets all alike; each round in another order, so that
    none always follows the one that emptied the caches."""
    samples: dict[str, list[Sample]] = {name: [] for name in commands}
    for number in range(rounds):
        for name in random.Random(number).sample(list(commands), len(commands)):
            samples[name].append(_sample(commands[name]))
    return samples


def file_calls(command: Command) -> int:
    """System calls of the whole process and its children, from exec to exit, that touch the file system's names."""
    with tempfile.NamedTemporaryFile("r") as summary:
        _run([*tracer(summary.name), *command])
        return traced(summary.read())


def tracer(summary: str) -> Command:
    """What stands before a command whose file-system calls are to be counted into the file `summary`."""
    return [STRACE, "-f", "-c", "-e", f"trace={TRACED}", "-o", summary]


def traced(summary: str) -> int:
    """The calls that it counted."""
    return int(summary.splitlines()[-1].split()[3])


def cannot_trace() -> str | None:
    """Why file_calls has no figures here: strace is missing, or a container forbids it."""
    return failure([STRACE, "-o", os.devnull, sys.executable, "-c", "pass"])


def peak_memory(command: Command) -> float:
    """MB of resident memory at most."""
    return int(_run([sys.executable, "-I", "-S", "-c", PEAK, *command]).stdout) / 1024


def imports(command: Command) -> list[Import]:
    """What a Python command imports, in order, the interpreter's own start left out; the quickest of some runs."""
    return min((_imports(command) for _ in range(5)), key=lambda found: sum(one.ms for one in found if one.depth == 0))


def _imports(command: Command) -> list[Import]:
    python, *rest = command
    lines = _run([python, "-X", "importtime", *rest]).stderr.splitlines()
    found = [re.match(r"import time:\s+\d+ \|\s+(\d+) \| ( *)(\S+)", line) for line in lines]
    read = [Import(m[3], len(m[2]) // 2, int(m[1]) / 1000) for m in found if m]
    return read[[one.module for one in read].index("site") + 1 :]


def last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def _sample(command: Command) -> Sample:
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    _run(command).check_returncode()
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Sample(wall * 1000, cpu * 1000)


def _run(command: Command) -> subprocess.CompletedProcess[str]:
    """In an empty folder that is all of its PATH, so without a Slurm: every machine sees what a laptop sees."""
    dropped = ("SLURM_", "SBATCH_", "PYTHON")
    env = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    with tempfile.TemporaryDirectory() as folder:
        env |= {"PATH": folder, "SLURM_CONF": "/nonexistent"}
        return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=PATIENCE)
