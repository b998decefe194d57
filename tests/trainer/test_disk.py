"""Files written past the page cache, where that can be."""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from trainer.checkpoint import disk as files
from trainer.checkpoint.format import PAGE, PIECE, HashingFile

SIZES = [1, PAGE - 1, PAGE, PAGE + 8, 3 * PAGE + 123, PIECE + PAGE + 1]


def pages(size: int) -> memoryview:
    """Random bytes that begin where a page does."""
    out = memoryview(mmap.mmap(-1, size))
    out[:] = np.random.default_rng(size).bytes(size)
    return out


@pytest.mark.parametrize("size", SIZES)
def test_every_byte_is_there(tmp_path: Path, disk: Callable[..., Path], size: int) -> None:
    data = pages(size)
    for folder in (tmp_path, disk(size, "ramfs")):
        write_all(folder, data)


def write_all(folder: Path, data: memoryview) -> None:
    """In one piece, in two that no page divides, and from where no page begins."""
    size = len(data)
    for number, parts in enumerate(([data], [data[: size // 2], data[size // 2 :]], [memoryview(b"-" + data)[1:]])):
        path = folder / str(number)
        with HashingFile(path, size) as file:
            for part in parts:
                file.write(part)
            file.end()
            file.sync()
        assert path.read_bytes() == data.tobytes()
        path.unlink()


def test_whole_pages_go_past_the_cache_and_the_rest_through_it(tmp_path: Path) -> None:
    try:
        os.close(os.open(tmp_path / "direct", os.O_WRONLY | os.O_CREAT | os.O_DIRECT))
        past = True
    except OSError:
        past = False
    fd = files.create(tmp_path / "file", PAGE + 1)
    files.write(fd, pages(PAGE))
    assert bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT) == past
    files.write(fd, memoryview(b"x"))
    assert not fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT
    os.close(fd)
    assert (tmp_path / "file").stat().st_size == PAGE + 1


def test_a_file_for_which_there_is_no_room_names_itself(disk: Callable[..., Path]) -> None:
    folder = disk(1 << 20)
    with pytest.raises(OSError, match=f"No space left on device: '{folder}/file'"):
        files.create(folder / "file", 2 << 20)
