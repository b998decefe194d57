"""A folder in the form of a checkpoint that any run may read: named by all that went into it, and never changed."""

from __future__ import annotations

import mmap
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import torch
import xxhash

from durable import fsync_path, nonce
from settings import ConfigError
from trainer.checkpoint import MANIFEST, CheckpointBroken
from trainer.checkpoint.format import BLOCK, VERSION, File, Manifest, Parameter, write_file, write_manifest
from trainer.checkpoint.image import Image
from trainer.checkpoint.load import Reader
from trainer.checkpoint.staging import CHUNK
from trainer.engines.shard import Shard
from trainer.runtime import Runtime

T = TypeVar("T")
Together = Callable[[Callable[[], T]], T]
"""Work that every rank does, and one rank's ConfigError is raised on all."""


def write(
    folder: Path,
    shards: list[Shard],
    replicas: tuple[int, int],
    config: Mapping[str, Any],
    data: str,
    runtime: Runtime,
    together: Together[Any],
) -> None:
    """Collective. Of every shard what its `tensors` hold, and the manifest with `config` and `data` in it. The folder
    appears whole; where another run was first, its stays. Raises ConfigError where it cannot be written."""
    temporary = folder.with_name(runtime.from_leader(f".tmp-{folder.name}-{nonce()}"))
    image = Image(shards, replicas, {})
    parameters = {shard.name: Parameter(list(shard.shape), 0) for shard in shards}

    def begin() -> None:
        if runtime.leads:
            temporary.mkdir(parents=True)

    def write_own() -> File:
        name = f"rank-{runtime.rank:04d}.safetensors"
        pieces = image.stream(torch.frombuffer(mmap.mmap(-1, CHUNK), dtype=torch.uint8))
        return write_file(temporary / name, pieces, image.size, lambda hashes: image.record(name, hashes))

    def commit() -> None:
        if runtime.leads:
            manifest = Manifest(VERSION, 0, runtime.epoch, {}, dict(config), data, {}, BLOCK, parameters, files)
            write_manifest(temporary, manifest)
            _publish(temporary, folder)

    try:
        together(_refusing(begin, folder))
        files = runtime.gather(together(_refusing(write_own, folder)))
        together(_refusing(commit, folder))
    finally:
        if runtime.leads:
            shutil.rmtree(temporary, ignore_errors=True)


def read(folder: Path, shards: Iterable[Shard], advice: str) -> Manifest:
    """Fill what the shards' `tensors` name; every block that is read is checked. Raises ConfigError, which ends with
    `advice`, when anything of it is missing or wrong."""
    try:
        with Reader(folder) as reader:
            reader.fill(shards)
            return reader.manifest
    except (CheckpointBroken, FileNotFoundError) as error:
        raise ConfigError(f"{folder}: {error}: {advice}") from None


def digest(folder: Path) -> str | None:
    """Of the manifest, and with it of every bit; None: there is no such folder."""
    try:
        return xxhash.xxh3_128_hexdigest((folder / MANIFEST).read_bytes())
    except FileNotFoundError:
        return None


def name_of(parts: Mapping[str, Any]) -> str:
    """By all that goes in."""
    return xxhash.xxh3_128_hexdigest(msgspec.json.encode(parts, order="sorted"))


def _publish(temporary: Path, folder: Path) -> None:
    try:
        temporary.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
    fsync_path(folder.parent)


def _refusing(work: Callable[[], T], folder: Path) -> Callable[[], T]:
    def refused() -> T:
        try:
            return work()
        except OSError as error:
            raise ConfigError(f"{folder} cannot be written: {error}: make room, or take another data.cache") from None

    return refused
