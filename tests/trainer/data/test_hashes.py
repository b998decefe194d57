from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import xxhash

from trainer.data.hashes import content_hash

LARGE = b"a line of text\n" * 400_000  # more than one block


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As if it had been written an hour ago: nobody can set a file's ctime."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(LARGE)
    now = time.time_ns
    monkeypatch.setattr("trainer.data.hashes.time.time_ns", lambda: now() + 3600 * 10**9)
    return path


def reads(path: Path, records: Path) -> tuple[str, int]:
    """The hash, and how many blocks were read for it."""
    count: list[None] = []
    return content_hash(path, records, lambda: count.append(None)), len(count)


def test_a_large_file_is_read_once(tmp_path: Path, file: Path) -> None:
    wanted = xxhash.xxh3_128_hexdigest(LARGE)
    assert reads(file, tmp_path / "records") == (wanted, 2)
    assert reads(file, tmp_path / "records") == (wanted, 0)
    record = next((tmp_path / "records").iterdir())
    record.write_bytes(record.read_bytes()[:20])
    assert reads(file, tmp_path / "records") == (wanted, 2)


def touched_in_place(file: Path) -> None:
    """The same size, and the mtime set back as `touch -d` and `rsync --times` do."""
    was = file.stat()
    with file.open("r+b") as handle:
        handle.write(b"A")
    os.utime(file, ns=(was.st_atime_ns, was.st_mtime_ns))


def replaced(file: Path) -> None:
    was = file.stat()
    other = file.with_name("other")
    other.write_bytes(b"A" + LARGE[1:])
    os.utime(other, ns=(was.st_atime_ns, was.st_mtime_ns))
    os.replace(other, file)


@pytest.mark.parametrize("change", [touched_in_place, replaced])
def test_a_change_is_seen_whatever_the_mtime_says(tmp_path: Path, file: Path, change: Callable[[Path], None]) -> None:
    content_hash(file, tmp_path / "records")
    change(file)
    assert reads(file, tmp_path / "records") == (xxhash.xxh3_128_hexdigest(b"A" + LARGE[1:]), 2)


def test_what_was_just_written_or_is_small_leaves_no_record(tmp_path: Path) -> None:
    for name, content in (("new", LARGE), ("small", b"one line\n")):
        (tmp_path / name).write_bytes(content)
        assert reads(tmp_path / name, tmp_path / "records") == reads(tmp_path / name, tmp_path / "records")
    assert not (tmp_path / "records").exists()


def test_a_file_that_grows_under_the_reader_leaves_no_record(tmp_path: Path, file: Path) -> None:
    def grow() -> None:
        with file.open("ab") as handle:
            handle.write(b"more\n")
            handle.truncate(len(LARGE))

    content_hash(file, tmp_path / "records", grow)
    assert not (tmp_path / "records").exists()
