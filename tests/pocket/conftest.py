"""A pocket of two nodes for all tests of this folder, under its own name: nobody else's pocket is touched."""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from envs.pocket import Pocket, network, process, up

NAME = "test-pocket"
ROOT = os.getuid() == 0

needs_slurm = pytest.mark.skipif(
    not all(shutil.which(name, path=process.SBIN) for name in ("slurmctld", "slurmd", "munged", "sbatch")),
    reason="no Slurm on this machine",
)
needs_namespaces = pytest.mark.skipif(not network.allowed(), reason="network namespaces need root, and a kernel with veth")


@pytest.fixture(scope="session")
def shared() -> Iterator[Pocket]:
    pocket = up(NAME, nodes=2, gpus=8)
    yield pocket
    up(NAME, nodes=2, gpus=8).down()


@pytest.fixture
def pocket(shared: Pocket) -> Pocket:
    """The shared pocket without jobs, whatever the test before did to it."""
    pocket = up(NAME, nodes=2, gpus=8)
    pocket.ask("scancel", "--user", pocket.layout.user)
    wait_for(lambda: not pocket.jobs())
    pocket.wait_ready()
    return pocket


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A folder that an ordinary user can write to, unlike pytest's tmp_path."""
    with tempfile.TemporaryDirectory(prefix="pocket-test-") as name:
        Path(name).chmod(0o777)
        yield Path(name)


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

    def wait_state(self, state: str, timeout_s: float = 30) -> None:
        wait_for(lambda: self.facts()["JobState"] == state, timeout_s, lambda: f"{self.facts()}\n{self.text()}")

    def wait_text(self, text: str, timeout_s: float = 30) -> None:
        wait_for(lambda: text in self.text(), timeout_s, lambda: f"{self.facts()}\n{self.text()}")


def submit(pocket: Pocket, scratch: Path, script: str, *flags: str) -> Job:
    file = scratch / "job.sh"
    file.write_text(f"#!/bin/bash\n{script}\n")
    output = f"--output={scratch}/%j.out"
    id = pocket.ask("sbatch", "--parsable", "--open-mode=append", output, *flags, str(file)).strip()
    return Job(pocket, id, scratch / f"{id}.out")


def wait_for(ready: Callable[[], bool], timeout_s: float = 30, facts: Callable[[], str] = str) -> None:
    deadline = time.monotonic() + timeout_s
    while not ready():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {facts()}"
        time.sleep(0.05)
