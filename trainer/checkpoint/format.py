"""The files of a checkpoint: safetensors, written and read in blocks with a hash each. No pickle anywhere."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy.typing as npt
import xxhash

from durable import fsync_path
from settings import ConfigError
from trainer.checkpoint import MANIFEST, CheckpointBroken, disk, named

VERSION = 1
BLOCK = 1 << 20  # bytes under one hash: a reader of a part checks just what it reads
PIECE = 32 << 20  # bytes that are written at once, or read
PAGE = 1 << 16  # bytes: a multiple of what any machine, disk and file system wants of a write past the page cache
_CODES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}
"""torch's names of dtypes, and safetensors'."""

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
    evaluation_loss: float | None = None
    """Held-out, of the evaluation after this very step; None: there was none, or it is not finite."""
    first_losses: dict[str, float] = {}
    """Of each held-out set at its first evaluation, where the recipe limits the rise."""


# --- writing --------------------------------------------------------------------------------------------


class HashingFile:
    """A new file of a known size that hashes its blocks as they stream by.

    It goes to the disk past the page cache, as far as it comes in pages: a copy there would take a core from the
    training, and memory from everybody.
    """

    def __init__(self, path: Path, size: int) -> None:
        """Raises OSError where the file system has no room for `size` bytes: before anything is written."""
        self._fd = disk.create(path, size)
        self._hasher = xxhash.xxh3_64()
        self._room = BLOCK
        self.size = 0
        self.hashes: list[str] = []

    def __enter__(self) -> HashingFile:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def write(self, data: memoryview) -> None:
        while size := min(len(data), PIECE):
            part = data[: size - size % PAGE or size]
            data = data[len(part) :]
            self._hash(part)
            disk.write(self._fd, part)
            self.size += len(part)

    def _hash(self, data: memoryview) -> None:
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

    def end(self) -> list[str]:
        """The hashes of all blocks: nothing more is written."""
        if self._room < BLOCK:
            self._next_block()
        return self.hashes

    def sync(self) -> None:
        """Durable, or OSError: a failed fsync is never tried again on the same file, its pages count as clean then."""
        os.fsync(self._fd)


def memory_of(array: Array) -> memoryview:
    """The bytes of a contiguous array."""
    return memoryview(array).cast("B") if array.size else memoryview(b"")  # type: ignore[arg-type]


def name_of(dtype: object) -> str:
    """torch.float32 -> float32: a reader needs no torch."""
    return str(dtype).removeprefix("torch.")


def header(
    tensors: Iterable[tuple[str, object, Sequence[int], int]], metadata: dict[str, str] | None = None
) -> tuple[bytes, dict[str, int]]:
    """safetensors' header of tensors (name, torch's dtype, shape, bytes) that follow each other without a gap, and the
    byte at which each begins in the file."""
    table: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    begins, at = {}, 0
    for name, dtype, shape, size in tensors:
        begins[name], end = at, at + size
        table[name] = {"dtype": _CODES[name_of(dtype)], "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(table).encode()
    text += b" " * (-len(text) % 8)
    first = 8 + len(text)
    return struct.pack("<Q", len(text)) + text, {name: first + begin for name, begin in begins.items()}


def write_file(path: Path, data: Iterable[memoryview], size: int, record: Callable[[list[str]], File]) -> File:
    """A new file of `size` bytes, durable. `record`: of its blocks' hashes, called when all are known and the disk is
    still at work."""
    with HashingFile(path, size) as file:
        for part in data:
            file.write(part)
        assert file.size == size
        found = record(file.end())
        file.sync()
    return found


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """The last file of a checkpoint, with a hash of itself; file and folder durable."""
    with open(folder / MANIFEST, "x", encoding="utf-8") as file:
        file.write(_text(msgspec.to_builtins(manifest)))
        file.flush()
        os.fsync(file.fileno())
    fsync_path(folder)


def _text(body: dict[str, Any]) -> str:
    return json.dumps({**body, "hash": _self_hash(body)}, indent=1)


def _self_hash(body: dict[str, Any]) -> str:
    return xxhash.xxh3_64(json.dumps(body, sort_keys=True).encode()).hexdigest()


# --- reading --------------------------------------------------------------------------------------------


def read_manifest(folder: Path) -> Manifest:
    """The manifest, with every file there in its size. Raises CheckpointBroken; ConfigError for a later version."""
    try:
        text = (folder / MANIFEST).read_text(encoding="utf-8")
        body = json.loads(text)
        stored = body.pop("hash", None)
        if stored != _self_hash(body):
            raise CheckpointBroken(f"{MANIFEST} was changed: its hash does not fit")
        if (version := body.get("version", 0)) > VERSION:
            raise ConfigError(f"{folder} has format version {version}, newer than this Outlast reads ({VERSION})")
        if text != _text(body):  # a wrong bit may mean the same: 1e-05 and 1E-05
            raise CheckpointBroken(f"{MANIFEST} was changed: it is not what was written")
        manifest = msgspec.convert(body, Manifest)
        if named(folder.name) not in (None, (manifest.step, manifest.epoch)):
            raise CheckpointBroken(f"its manifest is that of step {manifest.step}, epoch {manifest.epoch}")
        if outside := [file.name for file in manifest.files if file.name != os.path.basename(file.name)]:
            raise CheckpointBroken(f"{MANIFEST} names a file elsewhere: {outside[0]}")
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

    def __init__(self, folder: Path, file: File, block: int, near: Path | None = None) -> None:
        """`near`: a copy that is read first, until a block of it is wrong."""
        self.record, self._path, self.near = file, folder / file.name, near
        self._fd = os.open(near or self._path, os.O_RDONLY)
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        self._block = block
        self._buffer: memoryview | None = None
        self._held = -1, memoryview(b"")
        """The last block of which a part was asked for, and its bytes: the next range begins there as a rule."""

    def close(self) -> None:
        os.close(self._fd)

    def read(self, first: int, out: memoryview) -> None:
        """Fill `out` from byte `first` on. Raises CheckpointBroken for a block with a wrong bit."""
        while len(out):
            index, inside = divmod(first, self._block)
            if inside == 0 and len(out) >= self._block:
                part = self._fill(index, out[: min(len(out) // self._block * self._block, PIECE)])
            else:
                if self._held[0] != index:
                    if self._buffer is None:  # most files are read in whole blocks
                        self._buffer = memoryview(bytearray(self._block))
                    self._held = index, self._fill(index, self._buffer)
                part = self._held[1][inside : inside + len(out)]
                out[: len(part)] = part
            if not part:
                raise CheckpointBroken(f"{self.record.name} ends before byte {first + len(out):,}")
            first, out = first + len(part), out[len(part) :]

    def _fill(self, index: int, out: memoryview) -> memoryview:
        """Whole blocks from this one on, each checked; the last one of a file is shorter."""
        size, first = 0, index * self._block
        while more := os.preadv(self._fd, [out[size:]], first + size):
            size += more
        try:
            for at in range(0, max(size, 1), self._block):
                self._check(index + at // self._block, out[at : min(size, at + self._block)])
        except CheckpointBroken:
            if self.near is None:
                raise
            os.close(self._fd)
            self._fd, self.near = os.open(self._path, os.O_RDONLY), None
            return self._fill(index, out)
        return out[:size]

    def _check(self, index: int, data: memoryview) -> None:
        known = self.record.hashes[index] if index < len(self.record.hashes) else None
        if xxhash.xxh3_64(data).hexdigest() != known:
            first = index * self._block
            raise CheckpointBroken(f"{self.record.name}: block {index} (from byte {first:,}) has a wrong bit")
