"""Hashes of files, with a record of those of large ones: what nobody has touched since is not read again."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import xxhash

from durable import write_atomic
from settings import ConfigError

_BLOCK = 1 << 22
"""Bytes. A file that has no more is read as soon as its record."""
_SETTLED = 2.0
"""Seconds. What was written later before a hash may be written once more under the same time stamp."""


class _Record(msgspec.Struct, frozen=True):
    stamp: tuple[int, int, int, int]
    hash: str


def content_hash(path: Path, records: Path, between: Callable[[], Any] = lambda: None) -> str:
    """xxh3 of what a file holds. `records`: the folder of what is known. Raises ConfigError."""
    record = records / xxhash.xxh3_128_hexdigest(os.fsencode(os.path.abspath(path)))
    began = time.time_ns()
    try:
        with path.open("rb") as handle:
            stamp = _stamp(handle)
            known = _known(record) if stamp[0] > _BLOCK else None
            if known and known.stamp == stamp:
                return known.hash
            digest = xxhash.xxh3_128()
            while block := handle.read(_BLOCK):
                digest.update(block)
                between()
            settled = max(stamp[1:3]) < began - _SETTLED * 1e9 and _stamp(handle) == stamp
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    if settled and stamp[0] > _BLOCK:
        with suppress(OSError):  # somebody else's folder: the next one reads the file again
            records.mkdir(mode=0o755, exist_ok=True)
            write_atomic(record, msgspec.json.encode(_Record(stamp, digest.hexdigest())).decode())
    return digest.hexdigest()


def _stamp(handle: BinaryIO) -> tuple[int, int, int, int]:
    """What a write changes: size, times (ns; nobody can set the second one), inode."""
    found = os.fstat(handle.fileno())  # of the open file: NFS asks its server when a file is opened
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def _known(record: Path) -> _Record | None:
    try:
        return msgspec.json.decode(record.read_bytes(), type=_Record)
    except (OSError, msgspec.DecodeError):
        return None
