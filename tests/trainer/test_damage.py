"""A checkpoint that lay on a disk too long: whatever became of it is found, by `verify` and by a resume, which then goes
back to the older one."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.trainer.told import Attempt, Origin
from trainer.checkpoint.__main__ import main

FLIPS = int(os.environ.get("OUTLAST_FLIPS", "250"))  # a nightly run takes 1,000
FILES = ("rank-0000.safetensors", "rank-0001.safetensors", "MANIFEST.json")


class Aged:
    """A run with two checkpoints, and the ranks that look at it."""

    def __init__(self, origin: Origin, run_dir: Path, reader: Attempt) -> None:
        self._origin, self._reader = origin, reader
        self.run_dir = run_dir
        self.older, self.newest = sorted((run_dir / "checkpoints").iterdir())

    def is_whole(self) -> bool:
        (first, second) = self._reader.all("load", str(self.run_dir))
        good = {"step": 2, "digest": self._origin.digests[2], "passed_over": []}
        return main(["verify", str(self.run_dir)]) == 0 and first == second == good

    def is_found(self) -> bool:
        by_verify = main(["verify", str(self.run_dir)]) == 1
        (first, second) = self._reader.all("load", str(self.run_dir))
        (passed_over,) = first.pop("passed_over") or ("",)
        second.pop("passed_over")
        fell_back = first == second == {"step": 1, "digest": self._origin.digests[1]}
        for bad in (self.run_dir / "checkpoints").glob(".bad-*"):
            bad.rename(self.newest)
        return by_verify and fell_back and passed_over.startswith(f"{self.newest.name}: ")


@pytest.fixture
def aged(origins: Callable[[int], Origin], tmp_path: Path) -> Iterator[Aged]:
    origin = origins(2)
    with origin.attempt(tmp_path / "run") as attempt:
        attempt.all("save")
    with Attempt(origin.zygote, tmp_path / "reader", 2) as reader:
        yield Aged(origin, tmp_path / "run", reader)


def flip(path: Path, bit: int) -> None:
    with open(path, "r+b") as file:
        file.seek(bit // 8)
        (byte,) = file.read(1)
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))


def test_flipped_bits_are_found(aged: Aged) -> None:
    chance = random.Random(1)
    assert aged.is_whole()
    for _ in range(FLIPS):
        path = aged.newest / chance.choice(FILES)
        bit = chance.randrange(8 * path.stat().st_size)
        flip(path, bit)
        assert aged.is_found(), f"{path.name}: bit {bit}"
        flip(path, bit)
    assert aged.is_whole()


def zero_a_page(path: Path) -> None:
    data = path.read_bytes()
    page = len(data) // 2 // 4096 * 4096
    path.write_bytes(data[:page] + bytes(len(data[page : page + 4096])) + data[page + 4096 :])


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "harm",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(path.read_bytes()[:4096]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes() + b"\0"),
        zero_a_page,
        Path.unlink,
        lambda path: shutil.copy(path.parent.with_name("step-00000001-e0001") / path.name, path),
    ],
    ids=["cut by a byte", "cut to a page", "empty", "longer", "a page of zeros", "deleted", "an older one's"],
)
def test_a_file_that_is_not_what_was_saved(aged: Aged, harm: Callable[[Path], object], name: str) -> None:
    harm(aged.newest / name)
    assert aged.is_found()


def test_files_that_have_changed_places(aged: Aged) -> None:
    first, second, other = (aged.newest / name for name in (*FILES[:2], "other"))
    first.rename(other)
    second.rename(first)
    other.rename(second)
    assert aged.is_found()


def test_a_whole_older_checkpoint_under_the_newest_name(aged: Aged) -> None:
    shutil.rmtree(aged.newest)
    shutil.copytree(aged.older, aged.newest)
    assert aged.is_found()
