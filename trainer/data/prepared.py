"""Prepared data on disk: one folder of flat arrays and a manifest, opened in milliseconds at any size.

    tokens.bin     uint16 or uint32, one a token: all documents, one after the other
    loss.bin       uint8, one a token: 1 when it is a target that counts; a document's first token never is:
                   nothing in its document predicts it
    starts.bin     int64, one a document: where it begins in tokens.bin
    pieces.bin     int64, three a piece of a document: the document, where in tokens.bin its first input is, and its
                   number of pairs of an input and its target, the token after it; sequence by sequence
    packs.bin      int64, one a sequence, and one more: where its pieces begin in pieces.bin
    rejects.jsonl  the rows that could not be used: file, line (row number in columnar files), reason
    manifest.json  written last

A sequence has T = seq_len places; what its pieces leave free at its end is padding (trainer/data/packing.py).
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import xxhash

from settings import ConfigError
from trainer.data.values import Dtype

IGNORED = -100
"""Label of a token that is no target: torch's cross_entropy skips it."""
_SMALL = 16 << 20
"""Bytes of an array that is held in memory."""


class Sequences(NamedTuple):
    """B of T places each."""

    inputs: npt.NDArray[np.int64]
    """(B, T)."""
    targets: npt.NDArray[np.int64]
    """(B, T), of each input; IGNORED where it does not count."""
    documents: npt.NDArray[np.int32]
    """(B, T), of each input. What is left at a sequence's end counts as more of the last one: it comes last, so nothing
    looks at it."""
    lengths: npt.NDArray[np.int64]
    """Places of each piece, one sequence after the other: B x T in all."""
    offsets: npt.NDArray[np.int64]
    """(B,), of each first input within its document (tokens)."""


class Manifest(msgspec.Struct, frozen=True):
    """What a folder of prepared data holds."""

    fingerprint: str
    format: int
    seq_len: int
    """Tokens in a packed sequence."""
    dtype: Dtype
    """numpy's name of the type in tokens.bin."""
    rows: int
    """Rows read, usable or not; blank lines are none."""
    documents: int
    tokens: int
    sequences: int
    pieces: int
    pairs: int
    """Inputs with a target: every token but a document's last is one, once."""
    rejects: dict[str, int]
    """Rows that could not be used, by reason."""
    too_long: int = 0
    """Documents of more than data.max_tokens among those that are there, split or cut."""

    @property
    def fill(self) -> float:
        """Share of the places that are no padding."""
        return self.pairs / max(1, self.sequences * self.seq_len)

    @property
    def summary(self) -> str:
        reasons = "".join(f"; {reason}: {count:,}" for reason, count in self.rejects.items())
        return (
            f"{self.rows:,} rows = {self.documents:,} documents + {sum(self.rejects.values()):,} that cannot be used"
            f"{reasons}; {self.tokens:,} tokens; {self.sequences:,} sequences, {self.fill:.2%} full"
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
            size = kind.itemsize * self._counts[name]
            found = (self.folder / f"{name}.bin").stat().st_size
            if found != size:
                raise ValueError(f"{name}.bin has {found:,} bytes, not {size:,}")

    def read(self, name: str, first: int, count: int) -> npt.NDArray[Any]:
        """Elements of one array. By pread: other threads run while a file system takes its time. The page fault of a
        memory map may hold up all of them, and with them this rank's vote."""
        if (held := self._held.get(name)) is not None:
            return held[first : first + count]
        return self._read(name, first, count)

    def _read(self, name: str, first: int, count: int) -> npt.NDArray[Any]:
        into, width = np.empty(count, self._types[name]), self._types[name].itemsize
        if os.preadv(self._files[name], [into.data], first * width) != count * width:
            raise self._ends_before(name, first + count)
        return into

    def read_pieces(
        self, pieces: Iterable[tuple[int, int, int]], inputs: memoryview, last: memoryview, counts: memoryview
    ) -> None:
        """Tokens and what of them counts. pieces: where in `inputs` and `counts`, from which token on, how many. After
        the inputs of each comes a token that is a target alone: into `last`."""
        if "tokens" in self._held:
            held, counted = self._held["tokens"].data, self._held["loss"].data
            for index, (begin, first, pairs) in enumerate(pieces):
                inputs[begin : begin + pairs] = held[first : first + pairs]
                last[index] = held[first + pairs]
                counts[begin : begin + pairs] = counted[first + 1 : first + 1 + pairs]
            return
        tokens, loss, width = self._files["tokens"], self._files["loss"], inputs.itemsize
        for index, (begin, first, pairs) in enumerate(pieces):
            end = begin + pairs
            into = inputs[begin:end], last[index : index + 1]
            if os.preadv(tokens, into, first * width) != (pairs + 1) * width:
                raise self._ends_before("tokens", first + pairs + 1)
            if os.preadv(loss, [counts[begin:end]], first + 1) != pairs:
                raise self._ends_before("loss", first + pairs + 1)

    def _ends_before(self, name: str, element: int) -> OSError:
        return OSError(f"{self.folder / name}.bin ends before element {element:,}")

    @property
    def _counts(self) -> dict[str, int]:
        """Elements of each array."""
        known = self.manifest
        indices = {"starts": known.documents, "pieces": 3 * known.pieces, "packs": known.sequences + 1}
        return {"tokens": known.tokens, "loss": known.tokens, **indices}

    @cached_property
    def _types(self) -> dict[str, np.dtype[Any]]:
        names = {"tokens": self.manifest.dtype, "loss": "uint8", "starts": "int64", "pieces": "int64", "packs": "int64"}
        return {name: np.dtype(kind) for name, kind in names.items()}

    def sequence(self, number: int) -> Sequences:
        """One alone."""
        return read([Place("", self, number)])

    def index(self, number: int) -> npt.NDArray[np.int64]:
        """The pieces of a sequence, (n, 3)."""
        low, high = self.read("packs", number, 2).tolist()
        return self.read("pieces", 3 * low, 3 * (high - low)).reshape(-1, 3)

    def documents_of(self, number: int) -> tuple[npt.NDArray[np.int32], int]:
        """What the index says that a sequence holds: of `Sequences`, its `documents` and `offsets`."""
        document, first, pairs = self.pieces[self.packs[number] : self.packs[number + 1]].T
        lengths = _filled(pairs, np.zeros(1, np.int64), self.seq_len)
        return np.repeat(document.astype(np.int32), lengths), int(first[0] - self.starts[document[0]])

    @cached_property
    def _held(self) -> dict[str, npt.NDArray[Any]]:
        """Small arrays, whole: each call of pread gives Python's lock away, and the thread that computes waits to have
        it back, which tiny steps feel (0.6 ms of 5)."""
        counts = {name: count for name, count in self._counts.items() if count * self._types[name].itemsize <= _SMALL}
        found = {name: self._read(name, 0, count) for name, count in counts.items()}
        for array in found.values():
            array.setflags(write=False)  # what `read` gives are views of it
        return found

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
    def loss(self) -> npt.NDArray[np.uint8]:
        return self._map("loss")

    @cached_property
    def starts(self) -> npt.NDArray[np.int64]:
        return self._map("starts")

    @cached_property
    def pieces(self) -> npt.NDArray[np.int64]:
        """(pieces, 3)."""
        return self._map("pieces").reshape(-1, 3)

    @cached_property
    def packs(self) -> npt.NDArray[np.int64]:
        return self._map("packs")

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


def read(places: list[Place]) -> Sequences:
    """The sequences at `places` (B,), of one length."""
    room = places[0].prepared.seq_len
    found = [place.prepared.index(place.number) for place in places]
    begins = np.cumsum([0, *map(len, found[:-1])])
    document, first, pairs = np.concatenate(found).T
    lengths = _filled(pairs, begins, room)
    at = np.cumsum(lengths) - lengths
    tokens, last = (np.zeros(size, places[0].prepared.manifest.dtype) for size in (lengths.sum(), len(pairs)))
    counts = np.zeros(len(tokens), np.uint8)
    where = list(zip(at.tolist(), first.tolist(), pairs.tolist(), strict=True))
    for place, begin, pieces in zip(places, begins.tolist(), found, strict=True):
        own = slice(begin, begin + len(pieces))
        place.prepared.read_pieces(where[own], tokens.data, last[own].data, counts.data)
    inputs = tokens.astype(np.int64)
    targets = np.roll(inputs, -1)  # of a token it is the next one
    targets[at + pairs - 1] = last
    targets[counts == 0] = IGNORED
    starts = [
        place.prepared.read("starts", number, 1)[0] for place, number in zip(places, document[begins], strict=True)
    ]
    documents = np.repeat(document.astype(np.int32), lengths)
    rows = inputs.reshape(-1, room), targets.reshape(-1, room), documents.reshape(-1, room)
    return Sequences(*rows, lengths, first[begins] - starts)


def _filled(pairs: npt.NDArray[np.int64], begins: npt.NDArray[np.int64], room: int) -> npt.NDArray[np.int64]:
    """Places of each piece: the last one of a sequence has what is left. `begins`: each sequence's first piece."""
    lengths = pairs.copy()
    lengths[np.append(begins[1:], len(pairs)) - 1] += room - np.add.reduceat(pairs, begins)
    return lengths


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
