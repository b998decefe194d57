"""Files that are whole or not there, also after a crash of this host. Standard library only: both halves use it."""

from __future__ import annotations

import json
import os
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


def make_own(folder: Path) -> None:
    """A folder for this user alone, below one that others may write to: theirs under our name is refused, or a link."""
    folder.mkdir(0o700, exist_ok=True)
    found = folder.lstat()
    if folder.is_symlink() or found.st_uid != os.geteuid():
        raise PermissionError(1, "somebody else made this folder", str(folder))
    if found.st_mode & 0o077:
        folder.chmod(0o700)


def append_line(path: Path, record: dict[str, Any], sync: bool = False) -> None:
    """One JSON line by one write, so that two writers never mix in it; a line that a kill tore is closed first.

    `sync`: it survives a crash of this host, at the cost of an fsync.
    """
    fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(fd).st_size
        torn = size and os.pread(fd, 1, size - 1) != b"\n"
        os.write(fd, (b"\n" if torn else b"") + json.dumps(record).encode() + b"\n")
        if sync:
            os.fsync(fd)
    finally:
        os.close(fd)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON lines of a file, none where there is no file; a line torn by a kill is dropped."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    records = []
    for line in text.splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            records.append(record)
    return records
