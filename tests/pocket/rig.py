"""What the tests of the pocket share: its name, jobs to ask and to wait for."""

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from envs.pocket import Pocket, network, process
from tests.workers import own

NAME = own("test-pocket")
ROOT = os.getuid() == 0

needs_slurm = pytest.mark.skipif(
    not all(shutil.which(name, path=process.SBIN) for name in ("slurmctld", "slurmd", "munged", "sbatch")),
    reason="no Slurm on this machine",
)
needs_namespaces = pytest.mark.skipif(not network.allowed(), reason="no network namespaces on this machine")


@dataclass(frozen=True)
class Job:
    pocket: Pocket
    id: str
    output: Path

    def facts(self) -> dict[str, str]:
        words = self.pocket.ask("scontrol", "--oneliner", "show", "job", self.id).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def text(self) -> str:
        return self.output.read_text() if self.output.exists() else ""

    def wait_state(self, state: str, timeout_s: float = 100) -> None:
        wait_for(lambda: self.facts()["JobState"] == state, timeout_s, self._report)

    def wait_text(self, text: str, timeout_s: float = 100) -> None:
        wait_for(lambda: text in self.text(), timeout_s, self._report)

    def _report(self) -> str:
        return f"{self.facts()}\n{self.text()}"


def submit(pocket: Pocket, scratch: Path, script: str, *flags: str) -> Job:
    file = scratch / "job.sh"
    file.write_text(f"#!/bin/bash\n{script}\n")
    output = f"--output={scratch}/%j.out"
    id = pocket.ask("sbatch", "--parsable", "--open-mode=append", output, *flags, str(file)).strip()
    return Job(pocket, id, scratch / f"{id}.out")


def wait_for(ready: Callable[[], bool], timeout_s: float = 100, facts: Callable[[], str] = str) -> None:
    deadline = time.monotonic() + timeout_s
    while not ready():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {facts()}"
        time.sleep(0.05)
