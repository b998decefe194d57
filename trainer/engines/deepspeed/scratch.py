"""Folders on a node's own disk for what an attempt swaps out: found fit before it starts, gone when it ends."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from durable import make_own
from settings import ConfigError

OFFLOADS = ("offload_optimizer", "offload_param")
"""Parts of DeepSpeed's `zero_optimization` that may name a disk."""


def on_disk(zero: Mapping[str, Any]) -> dict[str, str]:
    """What is swapped out, and the folder that the JSON names for it."""
    parts = {what: zero.get(what) or {} for what in OFFLOADS}
    return {what: part["nvme_path"] for what, part in parts.items() if part.get("device") == "nvme"}


class Scratch:
    """One rank's folders, NVME_PATH/outlast-RUN-HASH-attempt-0003-rank-0007: two runs on a node, or an attempt that is
    not dead yet beside the next one, would write to the same files else. One level: nobody removes another's parent."""

    def __init__(self, zero: Mapping[str, Any], run_dir: Path, epoch: int, rank: int) -> None:
        import hashlib  # with OpenSSL: 3 ms, which a dry run has no use for

        self._run = f"outlast-{run_dir.name}-{hashlib.sha256(os.fsencode(run_dir)).hexdigest()[:8]}"
        self._epoch, self._zero = epoch, zero
        self._roots = {what: Path(path) for what, path in on_disk(zero).items()}
        name = f"{self._run}-attempt-{epoch:04d}-rank-{rank:04d}"
        self.folders = {what: root / name for what, root in self._roots.items()}

    def settings(self) -> dict[str, Any]:
        """What DeepSpeed is given: these folders in place of those that the JSON names."""
        here = {what: {**self._zero[what], "nvme_path": str(path)} for what, path in self.folders.items()}
        return {**self._zero, **here}

    def make(self) -> None:
        """The folders, for the user alone, and none of an earlier attempt any more. Raises ConfigError."""
        for what, folder in self.folders.items():
            root = self._roots[what]
            try:
                for parent in (*reversed(root.parents), root):
                    parent.mkdir(0o700, exist_ok=True)
                make_own(folder)
                _try_direct(folder)
                entries = list(root.iterdir())
            except OSError as error:
                raise ConfigError(f"{_name(what, root)} cannot be used: {error.strerror}: {error.filename}") from None
            for path in entries:
                number = re.fullmatch(rf"{re.escape(self._run)}-attempt-(\d{{4,}})-rank-\d{{4,}}", path.name)
                if number and int(number[1]) < self._epoch:  # never a later one's: we may be the zombie
                    shutil.rmtree(path, ignore_errors=True)

    def check_room(self, needed: Mapping[str, int]) -> None:
        """`needed`: bytes of all ranks of this node. Raises ConfigError. To be asked before any of them writes."""
        together: dict[int, list[str]] = {}
        for what, folder in self.folders.items():
            together.setdefault(folder.stat().st_dev, []).append(what)
        for parts in together.values():
            root, total = self._roots[parts[0]], sum(needed[what] for what in parts)
            free = shutil.disk_usage(root).free
            if free < total:
                raise ConfigError(
                    f"{_name(' and '.join(parts), root)} has {free / 1e9:,.2f} GB free, and this node's ranks need "
                    f"{total / 1e9:,.2f} GB there: make room, take another folder, or more nodes"
                )

    def check_buffers(self, largest: int) -> None:
        """`largest`: elements of a rank's share of a parameter. Raises ConfigError."""
        size = (self._zero.get("offload_param") or {}).get("buffer_size", 100_000_000)
        if "offload_param" in self.folders and size < largest:
            raise ConfigError(
                f"engine.config: zero_optimization.offload_param.buffer_size={size:.0f}: a rank's share of the largest "
                f"parameter has {largest} elements: take {largest}"
            )

    def remove(self) -> None:
        for folder in self.folders.values():
            shutil.rmtree(folder, ignore_errors=True)


def _name(what: str, root: Path) -> str:
    return f"engine.config: zero_optimization.{what}.nvme_path={root} on {os.uname().nodename}"


def _try_direct(folder: Path) -> None:
    """DeepSpeed reads and writes past the page cache, and dies of an assertion where that is refused (an old tmpfs)."""
    path = folder / "direct"
    try:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_DIRECT, 0o600))
    except OSError as error:
        if error.errno == 22:
            raise OSError(22, "this file system knows no direct I/O", str(folder)) from None
        raise
    finally:
        path.unlink(missing_ok=True)
