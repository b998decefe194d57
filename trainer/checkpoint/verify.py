"""Every bit of a checkpoint looked at, without torch and without a model."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import xxhash

from trainer.checkpoint import CheckpointBroken
from trainer.checkpoint.format import File, Manifest, read_manifest


def problems(folder: Path) -> Iterator[str]:
    """What is wrong with a checkpoint, each in a line that names file, block and tensor; nothing: it is whole."""
    try:
        manifest = read_manifest(folder)
    except CheckpointBroken as error:
        yield str(error)
        return
    yield from _gaps(manifest)
    for file in manifest.files:
        try:
            yield from _wrong_blocks(folder, file, manifest)
        except OSError as error:
            yield f"{file.name}: {error.strerror}"


def _wrong_blocks(folder: Path, file: File, manifest: Manifest) -> Iterator[str]:
    if len(file.hashes) != -(-file.size // manifest.block):
        yield f"{file.name}: {len(file.hashes)} hashes for {file.size:,} bytes"
        return
    with open(folder / file.name, "rb", buffering=0) as opened:
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        block = memoryview(bytearray(manifest.block))
        for index, known in enumerate(file.hashes):
            size = opened.readinto(block)
            if xxhash.xxh3_64(block[:size]).hexdigest() != known:
                first = index * manifest.block
                held = list(_held(file, manifest, first, first + size)) or ["its header"]
                more = f" and {len(held) - 3} more" if len(held) > 3 else ""
                what = ", ".join(held[:3]) + more
                yield f"{file.name}: block {index} (from byte {first:,}) has a wrong bit: {what}"


def _held(file: File, manifest: Manifest, first: int, last: int) -> Iterator[str]:
    """What lies in the bytes [first, last) of a file."""
    for piece in file.pieces:
        bf16 = manifest.parameters[piece.tensor].bf16
        for kind, at in piece.offsets.items():
            size = (piece.stop - piece.start) * (2 if kind in bf16 else 4)
            if at < last and first < at + size:
                yield f"{kind} of {piece.tensor}"
    for name, (dtype, at, count) in file.arrays.items():
        if at < last and first < at + count * _width(dtype):
            yield name


def _width(dtype: str) -> int:
    return int("".join(filter(str.isdigit, dtype))) // 8


def _gaps(manifest: Manifest) -> Iterator[str]:
    """Parameters that the files together do not hold, or hold twice."""
    ranges = defaultdict(list)
    for file in manifest.files:
        for piece in file.pieces:
            ranges[piece.tensor].append((piece.start, piece.stop))
    for name, parameter in manifest.parameters.items():
        at = 0
        for start, stop in sorted(ranges.pop(name, [])):
            if start != at:
                break
            at = stop
        if at != (size := math.prod(parameter.shape)):
            yield f"{name}: the files hold it from element 0 to {at:,} of {size:,} in one piece"
    for name in ranges:
        yield f"{name}: the manifest does not say what it is"
