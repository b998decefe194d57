"""A pocket of two nodes for all tests of this folder, under its own name: nobody else's is touched."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from envs.pocket import Pocket, up
from tests.pocket.rig import NAME, wait_for


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
        Path(name).chmod(0o1777)
        yield Path(name)
