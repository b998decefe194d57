"""The ranks of a run on this machine, and a signal to one: `python -m envs.drill.ranks RUN_DIR SIGNAL` on a node."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from envs.drill.watch import wait_until
from slurm.node import below
from slurm.rundir import RunDir


def strike(run: RunDir, number: signal.Signals, dice: random.Random) -> None:
    os.kill(dice.choice(wait_until(lambda: ranks(run), "ranks")), number)


def ranks(run: RunDir) -> list[int]:
    """Process ids of a run's ranks on this machine: what the lowest shims started."""
    shims = [pid for pid in _called(below.SHIM) if f'{{"run_dir": {json.dumps(str(run.path))}' in _command_line(pid)]
    lowest = [pid for pid in shims if not below.shims_below(pid)]
    return sorted(rank for pid in lowest for rank in below.all_below(pid))


def step_daemons(run: RunDir) -> list[int]:
    """Process ids of the slurmstepd that stand between slurmd and a run's ranks, one a node."""
    return sorted({above for rank in ranks(run) if (above := _step_daemon(rank))})


def _step_daemon(pid: int) -> int | None:
    """The slurmstepd above a process. Its title is of no use: Slurm cuts it to the length of its first command line."""
    while pid > 1:
        try:
            head, _, rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
        except OSError:
            return None
        if head.endswith("(slurmstepd"):
            return pid
        pid = int(rest.split()[1])
    return None


def _called(name: str) -> Iterator[int]:
    for pid in _pids():
        try:
            if Path(f"/proc/{pid}/comm").read_text().strip() == name:
                yield pid
        except OSError:  # it has just ended
            continue


def _pids() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


if __name__ == "__main__":
    strike(RunDir(Path(sys.argv[1])), signal.Signals[sys.argv[2]], random.Random())
