"""Commands with a timeout and a checked result, and the process table (a pid file may lie)."""

import os
import resource
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from envs.pocket.errors import PocketError

SBIN = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Debian keeps slurmd, munged and ip where an ordinary user's PATH does not look."""

Check = Callable[[], bool]


def program(name: str) -> str:
    path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:{SBIN}")
    if path is None:
        raise PocketError(
            f"{name} is not installed on this machine; on Debian or Ubuntu: "
            "apt-get install slurmctld slurmd slurm-client munge iproute2"
        )
    return path


def run(
    argv: Sequence[str],
    *,
    stdin: str = "",
    env: Mapping[str, str] | None = None,
    timeout_s: float = 20,
    called: str = "",
) -> str:
    """Standard output of a command that must succeed; `called` is what errors call it."""
    called = called or f"`{' '.join(argv)}`"
    command = [program(argv[0]), *argv[1:]]
    try:
        done = subprocess.run(
            command, input=stdin, env=env, timeout=timeout_s, capture_output=True, text=True, check=False
        )
    except subprocess.TimeoutExpired:
        raise PocketError(f"{called} did not answer within {timeout_s:g} s") from None
    if done.returncode != 0:
        words = " ".join((done.stderr or done.stdout).split()) or "no message"
        raise PocketError(f"{called} failed with code {done.returncode}: {words}")
    return done.stdout


def command_line(pid: int) -> list[str]:
    """argv of a process; empty for a zombie, so the dead that PID 1 has not reaped yet are not seen."""
    try:
        text = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it ended
        return []
    return [os.fsdecode(word) for word in text.removesuffix(b"\0").split(b"\0")] if text else []


def command_lines() -> dict[int, list[str]]:
    """argv of every living process by pid."""
    pids = [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]
    return {pid: line for pid in pids if (line := command_line(pid))}


def find(argv: Sequence[str], table: Mapping[int, list[str]] | None = None) -> int | None:
    """Pid of the process with this command line, wherever its program lies: PATH differs between callers."""
    lines = command_lines() if table is None else table
    name, *options = argv
    same = (pid for pid, line in lines.items() if line[1:] == options and Path(line[0]).name == name)
    return next(same, None)


def with_limits(argv: Sequence[str]) -> list[str]:
    """With the soft limit of open files raised to the hard one: Slurm hands its limits on to the jobs."""
    files = min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 1 << 20)
    return ["prlimit", "--core=0", f"--nofile={files}", *argv]


def kill(find_pids: Callable[[], Iterable[int]], timeout_s: float = 10) -> None:
    """SIGKILL until `find_pids` finds none: a process may fork between the look and the signal."""
    deadline = time.monotonic() + timeout_s
    while pids := list(find_pids()):
        if time.monotonic() > deadline:
            raise PocketError(f"processes {pids} do not end though killed: see `ps -o pid,stat,wchan,args`")
        for pid in pids:
            send(pid, signal.SIGKILL)
        time.sleep(0.01)


def send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
    except PermissionError:
        raise PocketError(f"process {pid} is another user's: ask the one who brought this pocket up") from None


def wait_until(ready: Check, failure: Callable[[], str], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not ready():
        if time.monotonic() > deadline:
            raise PocketError(f"{failure()} (waited {timeout_s:g} s)")
        time.sleep(0.02)


def listens(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, timeout=1).close()
    except OSError:
        return False
    return True
