"""A packed environment on a node's own disk: thousands of small files that no import reads over the network. Standard
library only: every rank's shim imports it."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import time
import zlib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from durable import make_own, nonce
from slurm.node import node_local

UNUSED_SECONDS = 600.0
"""From when it is unpacked to when the ranks hold it."""


def place_of(archive: Path, folder: str) -> Path:
    """Where a node keeps what it has unpacked: another archive, or a newer one, lies elsewhere."""
    found = archive.stat()
    identity = f"{archive} {found.st_size} {found.st_mtime_ns}"
    return node_local.path_of(folder) / f"env-{zlib.crc32(identity.encode()):08x}"


def use(place: Path) -> None:
    """Its programs come first below this process, and nobody removes it until this process ends."""
    os.environ["PATH"] = os.pathsep.join([str(place / "bin"), os.environ.get("PATH", os.defpath)])
    os.environ.pop("PYTHONHOME", None)
    _lock(place, fcntl.LOCK_SH)


def unpack(archive: Path, place: Path) -> bool:
    """By one process of a node. Returns whether it is there: where the archive is missing, it is to be sent first.

    Raises OSError, and CalledProcessError after tar's own words.
    """
    make_own(place.parent)
    lock = _lock(place, fcntl.LOCK_SH)  # the ranks of another job hold it, too, for as long as they run
    try:
        if not place.is_dir():
            fcntl.flock(lock, fcntl.LOCK_EX)
            _remove(place.parent.glob(f".{place.name}-*"))  # what a kill has left half unpacked
        if not place.is_dir() and archive.is_file():
            fresh = place.with_name(f".{place.name}-{nonce()}")
            fresh.mkdir()
            subprocess.run(["tar", "--extract", f"--file={archive}", f"--directory={fresh}"], check=True)
            if (mend := fresh / "bin" / "conda-unpack").exists():
                subprocess.run([fresh / "bin" / "python", mend], check=True)
            fresh.rename(place)
        if archive.parent == place.parent:  # it was sent to this node for this alone
            archive.unlink(missing_ok=True)
        os.utime(place.with_name(f"{place.name}.lock"))
        return place.is_dir()
    finally:
        os.close(lock)
        _remove_others(place)


def _remove_others(place: Path) -> None:
    """Environments that nobody on this node runs from, nor is about to."""
    for lock in place.parent.glob("env-*.lock"):
        other = lock.with_suffix("")
        with suppress(OSError):
            if other != place and time.time() - lock.stat().st_mtime > UNUSED_SECONDS:
                held = _lock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove([other, *place.parent.glob(f".{other.name}-*")])
                os.close(held)


def _remove(folders: Iterable[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _lock(place: Path, how: int) -> int:
    """A descriptor that holds a lock on this environment until it is closed."""
    fd = os.open(place.with_name(f"{place.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, how)
    except OSError:
        os.close(fd)
        raise
    return fd
