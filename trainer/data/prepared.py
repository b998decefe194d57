"""Prepared data on disk: one folder of flat arrays and a manifest, opened in milliseconds at any size.

    tokens.bin     uint16 or uint32, one a token: all documents, one after the other
    documents.bin  int32, one a token: the number of its document
    loss.bin       uint8, one a token: 1 when it is a target that counts; a document's first token never is:
                   nothing in its document predicts it
    starts.bin     int64, one a document: where it begins in tokens.bin
    rejects.jsonl  the rows that could not be used: file, line (row number in columnar files), reason
    manifest.json  written last

Packing is concatenate-and-cut: sequence i of T = seq_len takes tokens i*T to i*T + T, the first T as inputs,
the last T as targets, so that each token is a target at most once.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import xxhash

from settings import ConfigError


class Manifest(msgspec.Struct, frozen=True):
    """What a folder of prepared data holds."""

    fingerprint: str
    format: int
    seq_len: int
    """Tokens in a packed sequence."""
    dtype: str
    """numpy's name of the type in tokens.bin."""
    rows: int
    """Rows read, usable or not; blank lines are none."""
    documents: int
    tokens: int
    sequences: int
    left_out: int
    """Tokens at the end that fill no sequence."""
    rejects: dict[str, int]
    """Rows that could not be used, by reason."""
    too_long: int = 0
    """Documents of more than data.max_tokens among those that are there, split or cut."""

    @property
    def summary(self) -> str:
        reasons = "".join(f"; {reason}: {count:,}" for reason, count in self.rejects.items())
        return (
            f"{self.rows:,} rows = {self.documents:,} documents + {sum(self.rejects.values()):,} that cannot be used"
            f"{reasons}; {self.tokens:,} tokens"
            + (f"; {self.too_long:,} documents are longer than the limit" if self.too_long else "")
        )


@dataclass(frozen=True)
class Prepared:
    """A folder of prepared data. As a whole an array is a read-only memory map."""

    folder: Path
    fingerprint: str
    sequences: int
    seq_len: int
    manifest: Manifest

    @classmethod
    def open(cls, folder: Path) -> Prepared:
        """Reads the manifest only. Raises ConfigError when a file is missing or cut."""
        try:
            manifest = msgspec.json.decode((folder / "manifest.json").read_bytes(), type=Manifest)
            prepared = cls(folder, manifest.fingerprint, manifest.sequences, manifest.seq_len, manifest)
            prepared._check_sizes()
        except (OSError, ValueError) as error:
            raise ConfigError(f"{folder}: damaged prepared data ({error}): remove this folder") from None
        return prepared

    def _check_sizes(self) -> None:
        for name, kind in self._types.items():
            size = kind.itemsize * (self.manifest.documents if name == "starts" else self.manifest.tokens)
            found = (self.folder / f"{name}.bin").stat().st_size
            if found != size:
                raise ValueError(f"{name}.bin has {found:,} bytes, not {size:,}")

    def read(self, name: str, first: int, count: int) -> npt.NDArray[Any]:
        """Elements of one array, by pread: other threads run while a file system takes its time. The page fault of a
        memory map may hold up all of them, and with them this rank's vote."""
        width = self._types[name].itemsize
        return np.frombuffer(os.pread(self._files[name], count * width, first * width), self._types[name])

    @cached_property
    def _types(self) -> dict[str, np.dtype[Any]]:
        names = {"tokens": self.manifest.dtype, "documents": "int32", "loss": "uint8", "starts": "int64"}
        return {name: np.dtype(kind) for name, kind in names.items()}

    @cached_property
    def _files(self) -> dict[str, int]:
        files = {name: os.open(self.folder / f"{name}.bin", os.O_RDONLY) for name in self._types}
        for fd in files.values():
            weakref.finalize(self, os.close, fd)
        return files

    @cached_property
    def tokens(self) -> npt.NDArray[Any]:
        return self._map("tokens")

    @cached_property
    def documents(self) -> npt.NDArray[np.int32]:
        return self._map("documents")

    @cached_property
    def loss(self) -> npt.NDArray[np.uint8]:
        return self._map("loss")

    @cached_property
    def starts(self) -> npt.NDArray[np.int64]:
        return self._map("starts")

    def _map(self, name: str) -> npt.NDArray[Any]:
        return np.asarray(np.memmap(self.folder / f"{name}.bin", self._types[name], "r"))  # plain arrays slice faster


class Place(NamedTuple):
    """Where a sequence lies."""

    name: str
    """Of its source."""
    prepared: Prepared
    number: int
    """Its own there."""

    def __str__(self) -> str:
        return f"{self.name}:{self.number}" if self.name else str(self.number)


class Pool:
    """Sources one behind the other, in the order of their names; their sequences are numbered through."""

    def __init__(self, sources: Mapping[str, Prepared]) -> None:
        """By name; "" is that of files that a recipe gives none. Raises ConfigError when their lengths differ."""
        self.sources = dict(sorted(sources.items()))
        self.sizes = {name: prepared.sequences for name, prepared in self.sources.items()}
        """Sequences of each."""
        lengths = {name: prepared.seq_len for name, prepared in self.sources.items()}
        if len(set(lengths.values())) > 1:
            raise ConfigError(f"data.train: sources of several lengths ({lengths}): a run has one, data.seq_len")
        self.sequences, self.seq_len = sum(self.sizes.values()), next(iter(lengths.values()))
        self._names, self._ends = list(self.sources), np.cumsum(list(self.sizes.values()))

    @property
    def fingerprint(self) -> str:
        """Of what all hold."""
        if list(self.sources) == [""]:
            return self.sources[""].fingerprint
        parts = {name: prepared.fingerprint for name, prepared in self.sources.items()}
        return xxhash.xxh3_128_hexdigest(msgspec.json.encode(parts))

    def places(self, ids: npt.NDArray[np.int64]) -> list[Place]:
        """ids: (n,)."""
        sources = np.searchsorted(self._ends, ids, "right")
        firsts = self._ends[sources] - np.array(list(self.sizes.values()))[sources]
        found = zip((self._names[source] for source in sources), (ids - firsts).tolist(), strict=True)
        return [Place(name, self.sources[name], number) for name, number in found]


def sequence_hash(documents_row: npt.NDArray[np.int32], start_offset: int, source: str = "") -> int:
    """A signed 64-bit name of what a sequence holds.

    documents_row: (T,), the documents of its inputs; start_offset: the place of its first token within its
    document (tokens), which tells apart the sequences inside one long document; source: its name, since every
    source numbers its documents from 0.
    """
    digest = xxhash.xxh3_64_intdigest(
        documents_row.tobytes() + int(start_offset).to_bytes(8, "little") + source.encode()
    )
    return digest - (1 << 64) if digest >> 63 else digest
