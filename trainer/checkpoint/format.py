"""The files of a checkpoint: safetensors, written and read in blocks with a hash each. No pickle anywhere."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import xxhash

from durable import fsync_path
from settings import ConfigError
from trainer.checkpoint import MANIFEST, CheckpointBroken

VERSION = 1
BLOCK = 1 << 20  # bytes under one hash: a reader of a part checks just what it reads
_DTYPES = {"float32": "F32", "uint16": "BF16", "uint8": "U8", "uint32": "U32", "int64": "I64"}
"""numpy's names and safetensors'; numpy has no bf16, so its bits are taken, and nothing else has 16."""

Array = npt.NDArray[Any]


class Piece(msgspec.Struct, frozen=True, array_like=True):
    """The flat range [start, stop) of a parameter in one file, and where each kind of it begins (bytes)."""

    tensor: str
    start: int
    stop: int
    offsets: dict[str, int]


class File(msgspec.Struct, frozen=True):
    name: str
    size: int
    hashes: list[str]
    """xxh3_64 of each block of BLOCK bytes, in hexadecimal."""
    pieces: list[Piece]
    arrays: dict[str, tuple[str, int, int]]
    """What is not a parameter (RNG): dtype, first byte, number of elements."""


class Parameter(msgspec.Struct, frozen=True):
    shape: list[int]
    step: int
    """AdamW's count of this parameter's steps."""
    bf16: list[str] = []
    """Kinds that are kept in bf16; the others are fp32."""


class Manifest(msgspec.Struct, frozen=True):
    version: int
    step: int
    """Optimizer steps that were done."""
    epoch: int
    layout: dict[str, Any]
    """World size, engine and the like: where one differs, a resume is not bit-identical from there on."""
    config: dict[str, Any]
    """The exact part of the config: what a resume must find again."""
    data: str
    """Fingerprint of the prepared data."""
    state: dict[str, int]
    """What the loop needs besides: tokens_seen, evaluated."""
    block: int
    parameters: dict[str, Parameter]
    files: list[File]


# --- writing --------------------------------------------------------------------------------------------


class HashingFile:
    """A new file that hashes its blocks as they stream by."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "xb")  # noqa: SIM115  a context of its own: close() is the commit
        self._hasher = xxhash.xxh3_64()
        self._room = BLOCK
        self.size = 0
        self.hashes: list[str] = []

    def write(self, data: memoryview) -> None:
        self._file.write(data)
        self.size += len(data)
        while len(data):
            part, data = data[: self._room], data[self._room :]
            self._hasher.update(part)
            self._room -= len(part)
            if not self._room:
                self._next_block()

    def _next_block(self) -> None:
        self.hashes.append(self._hasher.hexdigest())
        self._hasher.reset()
        self._room = BLOCK

    def close(self) -> None:
        """Durable, or OSError: a failed fsync is never tried again on the same file, its pages count as clean then."""
        if self._room < BLOCK:
            self._next_block()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()


def write_file(path: Path, ranges: Sequence[tuple[str, int, int, dict[str, Array]]], arrays: dict[str, Array]) -> File:
    """A safetensors file of parameter ranges (name, start, stop, arrays by kind) and other flat arrays."""
    entries = [
        (f"{kind}/{name}[{start}:{stop}]", a) for name, start, stop, kinds in ranges for kind, a in kinds.items()
    ]
    entries += arrays.items()
    header, positions = _header(entries)
    out = HashingFile(path)
    out.write(memoryview(header))
    for _, array in entries:
        out.write(memory_of(np.ascontiguousarray(array)))
    out.close()
    pieces = [
        Piece(name, start, stop, {kind: positions[f"{kind}/{name}[{start}:{stop}]"] for kind in kinds})
        for name, start, stop, kinds in ranges
    ]
    others = {name: (str(array.dtype), positions[name], int(array.size)) for name, array in arrays.items()}
    return File(path.name, out.size, out.hashes, pieces, others)


def memory_of(array: Array) -> memoryview:
    """The bytes of a contiguous array."""
    return memoryview(array).cast("B") if array.size else memoryview(b"")  # type: ignore[arg-type]


def _header(entries: Iterable[tuple[str, Array]]) -> tuple[bytes, dict[str, int]]:
    """safetensors' header, and the byte at which each array begins in the file."""
    table, begins, at = {}, {}, 0
    for name, array in entries:
        begins[name], end = at, at + array.nbytes
        table[name] = {"dtype": _DTYPES[str(array.dtype)], "shape": [int(array.size)], "data_offsets": [at, end]}
        at = end
    text = json.dumps(table).encode()
    text += b" " * (-len(text) % 8)
    first = 8 + len(text)
    return struct.pack("<Q", len(text)) + text, {name: first + begin for name, begin in begins.items()}


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """The last file of a checkpoint, with a hash of itself; file and folder durable."""
    body = msgspec.to_builtins(manifest)
    text = json.dumps({**body, "hash": _self_hash(body)}, indent=1)
    with open(folder / MANIFEST, "x", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fsync_path(folder)


def _self_hash(body: dict[str, Any]) -> str:
    return xxhash.xxh3_64(json.dumps(body, sort_keys=True).encode()).hexdigest()


# --- reading --------------------------------------------------------------------------------------------


def read_manifest(folder: Path) -> Manifest:
    """The manifest, with every file there in its size. Raises CheckpointBroken; ConfigError for a later version."""
    try:
        body = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        stored = body.pop("hash", None)
        if stored != _self_hash(body):
            raise CheckpointBroken(f"{MANIFEST} was changed: its hash does not fit")
        if (version := body.get("version", 0)) > VERSION:
            raise ConfigError(f"{folder} has format version {version}, newer than this Outlast reads ({VERSION})")
        manifest = msgspec.convert(body, Manifest)
        sizes = {file.name: (folder / file.name).stat().st_size for file in manifest.files}
    except FileNotFoundError as error:  # another OSError may pass: it proves nothing about the checkpoint
        raise CheckpointBroken(f"{Path(error.filename).name} is missing") from None
    except (ValueError, AttributeError, msgspec.ValidationError) as error:
        raise CheckpointBroken(f"{MANIFEST}: {error}") from None
    for file in manifest.files:
        if sizes[file.name] != file.size:
            raise CheckpointBroken(f"{file.name} has {sizes[file.name]:,} bytes, not {file.size:,}")
    return manifest


class VerifiedFile:
    """Reads byte ranges of a checkpoint file; every block that it touches is checked."""

    def __init__(self, folder: Path, file: File, block: int) -> None:
        self.record = file
        self._fd = os.open(folder / file.name, os.O_RDONLY)
        self._block = block
        self._held: tuple[int, bytes] = (-1, b"")

    def close(self) -> None:
        os.close(self._fd)

    def read(self, first: int, out: memoryview) -> None:
        """Fill `out` from byte `first` on. Raises CheckpointBroken for a block with a wrong bit."""
        done = 0
        while done < len(out):
            index, inside = divmod(first + done, self._block)
            data = self._verified(index)
            part = data[inside : inside + len(out) - done]
            if not part:
                raise CheckpointBroken(f"{self.record.name} ends before byte {first + len(out):,}")
            out[done : done + len(part)] = part
            done += len(part)

    def _verified(self, index: int) -> bytes:
        if self._held[0] != index:
            data = os.pread(self._fd, self._block, index * self._block)
            known = self.record.hashes[index] if index < len(self.record.hashes) else None
            if xxhash.xxh3_64(data).hexdigest() != known:
                raise CheckpointBroken(
                    f"{self.record.name}: block {index} (from byte {index * self._block:,}) has a wrong bit"
                )
            self._held = (index, data)
        return self._held[1]
