"""A run's supervisor as a child of this process: without a scheduler, or in the allocation of this shell."""

from __future__ import annotations

import subprocess
import sys
from typing import IO

from settings import read_yaml
from slurm.environment import without_job
from slurm.rundir import RunDir
from slurm.snapshot import code_environment


def supervise_here(run: RunDir, allocation: bool, log: IO[bytes] | None = None) -> subprocess.Popen[bytes]:
    """The supervisor as a child of this process; `log`: where its words go, else to the terminal."""
    workdir = read_yaml(run.path / "job.yaml").get("workdir")
    argv = [sys.executable, "-P", "-m", "slurm.supervisor", str(run.path), *(["--here"] if allocation else [])]
    environ = code_environment(run.path / "code")
    env = environ if allocation else without_job(environ)
    return subprocess.Popen(argv, env=env, cwd=workdir, stdout=log, stderr=log)
