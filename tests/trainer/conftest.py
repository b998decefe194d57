from __future__ import annotations

import functools
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.ranks import Run, Zygote, write_run
from tests.trainer.told import Origin, origin


@pytest.fixture
def new_run(zygote: Zygote, tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """Makes run folders, whose ranks are gone at the end of the test."""
    made: list[Run] = []

    def make(name: str, **changes: Any) -> Run:
        made.append(write_run(tmp_path / name, zygote, **changes))
        return made[-1]

    yield make
    for run in made:
        if any(pid not in zygote.codes for pid in run.pids):
            run.kill()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Makes a file system that holds so many bytes; a ramfs holds more, and knows no direct I/O."""
    if os.geteuid() != 0:
        pytest.skip("to mount a file system takes root")
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(size: int, kind: str = "tmpfs") -> Path:
        subprocess.run(["mount", "-t", kind, "-o", f"size={size}", "outlast", folder], check=True)
        return folder

    yield mount
    # A rank that has heard its last word may not have left it yet.
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture(scope="session")
def origins(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Origin]:
    """Gives a run with one checkpoint, saved by so many ranks that do what they are told."""
    return functools.cache(lambda world: origin(zygote, tmp_path_factory.mktemp("origin") / "run", world))
