"""Files that are whole or not there, also after a crash of this host. Standard library only: both halves use it."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


def nonce() -> str:
    """For a name that nobody else takes."""
    return os.urandom(4).hex()  # `secrets` would cost 5 ms to import


def write_atomic(path: Path, text: str) -> None:
    """A reader sees the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{nonce()}")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    fsync_path(path.parent)


def fsync_path(path: Path) -> None:
    """Make a file's content durable, or a folder's names: a new name is durable only when its folder is."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def keep(checkpoint: Path, target: Path) -> None:
    """The checkpoint under another name: its run may remove it. By hard links, which cost nothing; where the file
    system or its owner allows none, a link to where it lies."""
    target.parent.mkdir()
    try:
        target.mkdir()
        for file in checkpoint.iterdir():
            os.link(file, target / file.name)
    except OSError:
        shutil.rmtree(target)
        target.symlink_to(checkpoint)


def copy_private(source: Path, target: Path) -> None:
    """Whom the source is closed to reads no copy of it either."""
    shutil.copyfile(source, target)
    target.chmod(target.stat().st_mode & (source.stat().st_mode | 0o600))


def is_own(path: Path) -> bool:
    """Whether it is this user's own, and no link to what is."""
    return path.lstat().st_uid == os.geteuid() and not path.is_symlink()


def make_own(folder: Path) -> None:
    """A folder for this user alone, below one that others may write to: theirs under our name is refused, or a link."""
    folder.mkdir(0o700, exist_ok=True)
    if not is_own(folder):
        raise PermissionError(1, "somebody else made this folder", str(folder))
    if folder.stat().st_mode & 0o077:
        folder.chmod(0o700)


@contextmanager
def as_open_as(folder: Path) -> Iterator[None]:
    """What is written meanwhile may be read by those who may read this folder, and by nobody else."""
    umask = os.umask(0o777 & ~folder.stat().st_mode)
    try:
        yield
    finally:
        os.umask(umask)


def append_line(
    path: Path, record: Mapping[str, Any], sync: bool = False, link: Callable[[bytes], str] | None = None
) -> None:
    """One JSON line by one write, so that two writers never mix in it; a line that a kill tore is closed first.

    `sync`: it survives a crash of this host, at the cost of an fsync. `link`: what the line carries as its `chain` is
    this of the line before it, whoever wrote that.
    """
    append_lines(path, [record], sync, link)


def append_lines(
    path: Path,
    records: Iterable[Mapping[str, Any]],
    sync: bool = False,
    link: Callable[[bytes], str] | None = None,
) -> None:
    """The same of several lines at once."""
    fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        before = last_line(fd)
        text = b"" if not before or before.endswith(b"\n") else b"\n"
        before = before.rstrip(b"\n")
        for record in records:
            before = json.dumps({**record, "chain": link(before)} if link else record).encode()
            text += before + b"\n"
        if os.write(fd, text) < len(text):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        if sync:
            os.fsync(fd)
    finally:
        os.close(fd)


def last_line(fd: int) -> bytes:
    """Of an open file, with its newline if it has one."""
    size, span = os.fstat(fd).st_size, 4096
    while True:
        tail = os.pread(fd, span, max(0, size - span))
        begin = tail.rfind(b"\n", 0, -1) + 1
        if begin or span >= size:
            return tail[begin:]
        span *= 8


def read_lines(path: Path, start: int = 0) -> list[dict[str, Any]]:
    """The JSON lines of a file from byte `start` on, none where there is no file; a line torn by a kill is dropped."""
    try:
        with open(path, "rb") as file:
            file.seek(start)
            return parse_lines(file.read())[0]
    except FileNotFoundError:
        return []


def read_tail(path: Path, size: int) -> tuple[list[dict[str, Any]], int]:
    """The JSON lines in the last `size` bytes of a file, and how many lines there are torn."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return [], 0
    try:
        start = max(0, os.fstat(fd).st_size - size)
        data = os.pread(fd, size, start)
    finally:
        os.close(fd)
    return parse_lines(data.partition(b"\n")[2] if start else data)


def parse_lines(data: bytes) -> tuple[list[dict[str, Any]], int]:
    """JSON lines, and how many of them are torn: a kill left them unfinished."""
    lines = [line for line in data.split(b"\n") if line]
    with suppress(ValueError):  # all at once, which takes half as long
        found = json.loads(b"[%b]" % b",".join(lines))
        if len(found) == len(lines):
            return [record for record in found if isinstance(record, dict)], 0
    records, torn = [], 0
    for line in lines:
        try:
            record = json.loads(line.decode(errors="replace"))
        except ValueError:
            torn += 1
            continue
        if isinstance(record, dict):
            records.append(record)
    return records, torn
