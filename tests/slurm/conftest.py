"""A supervisor with real ranks and no scheduler, as in local mode."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from settings import dump_yaml, to_plain
from slurm.config import JobConfig
from slurm.rundir import RunDir

ROOT = Path(__file__).parent.parent.parent
Start = Callable[..., subprocess.Popen[str]]
Tool = Callable[[str, str], None]


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / "run's folder")


@pytest.fixture
def start(run: RunDir) -> Iterator[Start]:
    """Start a supervisor over ranks that run a piece of Python; it and its ranks are gone at the end."""
    started = []

    def go(program: str, theirs: Path | None = None, **job: object) -> subprocess.Popen[str]:
        """`theirs`: a folder of the user's, on PYTHONPATH and the working folder."""
        run.path.mkdir(exist_ok=True)
        (run.path / "program.py").write_text(textwrap.dedent(program))
        command = [sys.executable, "-S", str(run.path / "program.py")]
        defaults = {"name": "x", "cluster": "local", "launcher": "srun", "poll_seconds": 0.2, "command": command}
        settings = JobConfig(**{**defaults, **job})  # type: ignore[arg-type]
        (run.path / "job.yaml").write_text(dump_yaml(to_plain(settings)))
        argv = [sys.executable, "-P", "-m", "slurm.supervisor", str(run.path)]
        env = {**os.environ, "PYTHONPATH": f"{ROOT}:{theirs}" if theirs else str(ROOT)}  # as the job's script sets it
        process = subprocess.Popen(argv, env=env, cwd=theirs, stdout=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield go
    for process in started:
        if process.poll() is None:
            process.kill()  # its shims see that their parent is gone, and take their ranks along
        process.communicate()


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tool:
    """A command of the site's, by its name and the lines of a shell; said again it is another one."""
    folder = tmp_path / "tools"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def put(name: str, lines: str) -> None:
        (folder / name).write_text(f"#!/bin/sh\n{lines}\n")
        (folder / name).chmod(0o755)

    return put


READY = """
import os, signal, sys, time
open("{run}/ready-" + os.environ["OUTLAST_ATTEMPT"], "w").close()
"""


def causes(run: RunDir) -> list[str]:
    return [record["cause"] for record in run.attempts()]


def gone(pid: int) -> bool:
    """Ended, also when nobody has reaped it yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True
