"""The copy of the state that was staged last, in a file of the node's memory. It outlives the trainer: the next attempt
on these nodes finishes the save that was cut, and reads from memory what it would read from the shared file system.

    0003-rank-0007.safetensors   the bytes of the file of attempt 3's rank 7: its staging buffer
    0003-rank-0007.json          what the manifest says of it, there when all of it is there
"""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from durable import make_own
from trainer import claims
from trainer.checkpoint import disk
from trainer.checkpoint.format import File, Manifest
from trainer.runtime import Runtime

_NAME = re.compile(r"(\d{4,})-rank-(\d{4,})\.(safetensors|json)")
SPARE = 0.5
"""Share of what the node's memory file system has left that is not taken: libraries talk through it."""


class Kept(msgspec.Struct, frozen=True):
    """What one rank has staged."""

    born: float
    """When its run began: another one may have had this run's folder, and its name, before."""
    manifest: Manifest
    """Without the files."""
    file: File


class NodeMemory:
    """This rank's part of it. Without a folder for it nothing is kept, and nothing found. No error there costs a save
    or an attempt: its bytes count only with the right hashes."""

    def __init__(self, runtime: Runtime) -> None:
        self._folder, self._epoch = runtime.node_memory, runtime.epoch
        self._born = claims.born(runtime.run_dir)
        self._rank, self._local_ranks = runtime.rank, runtime.local_world_size
        if self._folder is not None:
            try:
                make_own(self._folder)
            except OSError:  # there is no such file system here
                self._folder = None

    # --- of this attempt ---

    def buffer(self, size: int) -> Tensor | None:
        """A new file's bytes; None: there is no room for those of all the node's ranks."""
        if self._folder is None:
            return None
        path = self._path(self._epoch, self._rank, "safetensors")
        try:
            found = os.statvfs(self._folder)
            if size * self._local_ranks > SPARE * found.f_bavail * found.f_frsize:
                return None
            with open(path, "w+b", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
                disk.reserve(file.fileno(), size)
                file.truncate(size)
                return torch.frombuffer(mmap.mmap(file.fileno(), size), dtype=torch.uint8)
        except OSError:
            _remove(path)
            return None

    def change(self) -> None:
        """The buffer is about to be written to: what it held is not whole any more."""
        if self._folder is not None:
            _remove(self._path(self._epoch, self._rank, "json"))

    def keep(self, manifest: Manifest, file: File) -> None:
        """The buffer holds all of a save."""
        if self._folder is None:
            return
        with suppress(OSError):
            if self._path(self._epoch, self._rank, "safetensors").exists():
                temporary = self._folder / f".{self._rank}"
                temporary.write_bytes(msgspec.json.encode(Kept(self._born, manifest, file)))
                temporary.rename(self._path(self._epoch, self._rank, "json"))

    # --- of earlier attempts ---

    def newest(self) -> Kept | None:
        """What this rank has staged last."""
        found = [kept for epoch, rank in self._earlier() if rank == self._rank and (kept := self._read(epoch, rank))]
        return max(found, key=lambda kept: (kept.manifest.step, kept.manifest.epoch), default=None)

    def read(self, kept: Kept) -> Iterator[memoryview]:
        """The bytes of what this rank has staged."""
        with open(self._path(kept.manifest.epoch, self._rank, "safetensors"), "rb") as file:
            yield memoryview(mmap.mmap(file.fileno(), kept.file.size, prot=mmap.PROT_READ))

    def path_of(self, file: File) -> Path | None:
        """Where this node's memory has a file of a checkpoint. Its blocks are still to be checked."""
        rank = int(file.name.removeprefix("rank-").partition(".")[0])
        epochs = (epoch for epoch, of in self._earlier() if of == rank)
        same = (epoch for epoch in epochs if (kept := self._read(epoch, rank)) and kept.file == file)
        return next((self._path(epoch, rank, "safetensors") for epoch in same), None)

    def forget_earlier(self) -> None:
        """Every rank of this node has read what it wanted."""
        for epoch, rank in self._earlier():
            for kind in ("json", "safetensors"):
                _remove(self._path(epoch, rank, kind))

    def _earlier(self) -> list[tuple[int, int]]:
        """Attempts before this one, and their ranks on this node, newest first."""
        names: list[str] = []
        with suppress(OSError):
            names = os.listdir(self._folder) if self._folder else []
        found = {(int(match[1]), int(match[2])) for match in map(_NAME.fullmatch, names) if match}
        return sorted((pair for pair in found if pair[0] < self._epoch), reverse=True)

    def _read(self, epoch: int, rank: int) -> Kept | None:
        with suppress(OSError, msgspec.DecodeError):
            kept = msgspec.json.decode(self._path(epoch, rank, "json").read_bytes(), type=Kept)
            size = self._path(epoch, rank, "safetensors").stat().st_size
            return kept if kept.born == self._born and size >= kept.file.size else None
        return None

    def _path(self, epoch: int, rank: int, kind: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{epoch:04d}-rank-{rank:04d}.{kind}"


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()
