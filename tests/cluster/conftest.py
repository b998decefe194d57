"""A real Slurm for the tests: one pocket of two nodes, and a way to launch on it as a user does."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from envs.pocket import Pocket, up
from slurm.rundir import RunDir
from tests.waiting import wait_until
from tests.workers import own

ROOT = Path(__file__).parent.parent.parent
Launch = Callable[..., RunDir]


@pytest.fixture(scope="session")
def pocket() -> Iterator[Pocket]:
    if shutil.which("slurmctld", path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None:
        pytest.skip("no Slurm on this machine")
    # Its own name, so that a user's pocket is untouched; two suites side by side need two.
    running = up(own(os.environ.get("OUTLAST_TEST_POCKET", "pocket-runs")), nodes=2, gpus=8)
    yield running
    running.down()


@pytest.fixture
def launch(pocket: Pocket, tmp_path: Path) -> Iterator[Launch]:
    """`launch.py` with these words, then `-- python -S PROGRAM` for a piece of Python. Its jobs are gone afterwards."""
    runs = tmp_path / "runs"

    def go(*words: str, program: str | None = None, name: str = "x", **environment: str) -> RunDir:
        command = []
        if program is not None:
            file = tmp_path / f"{name}.py"
            file.write_text(textwrap.dedent(program))
            command = ["--", sys.executable, "-S", str(file)]
        argv = [sys.executable, str(ROOT / "launch.py"), "--runs-dir", str(runs), "--name", name, *words, *command]
        env = {**os.environ, "OMP_NUM_THREADS": "1", **pocket.env(), **environment}
        done = subprocess.run(argv, env=env, capture_output=True, text=True, cwd=tmp_path, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        return RunDir(runs / name)

    yield go
    for job in pocket.jobs():
        pocket.ask("scancel", job)
    wait_until(lambda: not pocket.jobs(), "the queue to be empty")


def job_of(run: RunDir, index: int = 0) -> str:
    return str(run.jobs()[index]["job"])


def causes(run: RunDir) -> list[str]:
    return [str(record["cause"]) for record in run.attempts()]


def over(run: RunDir, seconds: float = 120) -> None:
    """Wait until the run is over and its last attempt's end is written."""
    wait_until(lambda: run.over and len(run.attempts()) == run.newest_epoch(), f"{run.path} to be over", seconds)


def job_log(run: RunDir) -> str:
    return "".join(path.read_text() for path in sorted((run.path / "logs").glob("job-*.log")))


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    from tests.cluster.training import write_recipe

    return write_recipe(tmp_path)
