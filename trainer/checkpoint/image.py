"""The bytes of the file that one rank writes: where each range lies, and how it comes there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.checkpoint.format import Array, File, Piece, header, memory_of, name_of
from trainer.engines.shard import Flat, Shard


@dataclass(frozen=True)
class Entry:
    """One flat array of the file."""

    name: str
    dtype: torch.dtype
    values: Flat
    first: int
    """Of the values: those before it are another rank's to write."""
    count: int

    @property
    def nbytes(self) -> int:
        return self.count * self.dtype.itemsize

    def copy_to(self, target: Tensor, low: int, high: int, wait: bool) -> Tensor:
        """The elements [low, high) to bytes that begin where an element of this kind may. Returns those bytes, which
        are there at once with `wait`."""
        values, taken = self.values[self.first + low : self.first + high], target[: (high - low) * self.dtype.itemsize]
        taken.view(self.dtype).copy_(values, non_blocking=not wait)
        return taken


class Image:
    def __init__(self, shards: Iterable[Shard], replicas: tuple[int, int], arrays: Mapping[str, Array]) -> None:
        """`replicas`: which of how many ranks that hold the same shards; each writes its part of them. `arrays`: what
        is no parameter (RNG)."""
        parts = [(shard, *shard.part(*replicas)) for shard in shards]
        entries = [Entry(name, values.dtype, values, 0, len(values)) for name, values in _tensors(arrays)]
        for shard, start, stop in parts:
            for kind, kept in shard.tensors.items() if start < stop else ():
                dtype = getattr(kept, "dtype", torch.float32)  # what is kept in eight bits is written as its values
                entries.append(Entry(_key(kind, shard, start, stop), dtype, kept, start - shard.start, stop - start))
        entries.sort(key=lambda entry: -entry.dtype.itemsize)  # without holes each then lies where its type may begin
        text, at = header((entry.name, entry.dtype, [entry.count], entry.nbytes) for entry in entries)
        first = Entry("", torch.uint8, torch.frombuffer(bytearray(text), dtype=torch.uint8), 0, len(text))
        self._entries = [first, *entries]
        self.size = sum(entry.nbytes for entry in self._entries)
        self._pieces = [
            Piece(shard.name, start, stop, {kind: at[_key(kind, shard, start, stop)] for kind in shard.tensors})
            for shard, start, stop in parts
            if start < stop
        ]
        self._arrays = {name: (name_of(values.dtype), at[name], len(values)) for name, values in _tensors(arrays)}

    def copy_to(self, buffer: Tensor) -> Iterator[memoryview]:
        """The whole file in a buffer of as many bytes, or more: the state may change from here on."""
        held = 0
        for entry in self._entries:
            held += len(entry.copy_to(buffer[held:], 0, entry.count, wait=False))
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return iter([memory_of(buffer[:held].numpy())])

    def stream(self, buffer: Tensor) -> Iterator[memoryview]:
        """The file in pieces as large as a small buffer, of a multiple of 8 bytes: the state must not change
        meanwhile."""
        held = 0
        for entry in self._entries:
            low = 0
            while low < entry.count:
                high = min(entry.count, low + (len(buffer) - held) // entry.dtype.itemsize)
                held += len(entry.copy_to(buffer[held:], low, high, wait=True))
                low = high
                if held == len(buffer):
                    yield memory_of(buffer.numpy())
                    held = 0
        yield memory_of(buffer[:held].numpy())

    def record(self, name: str, hashes: list[str]) -> File:
        """What the manifest says of the file."""
        return File(name, self.size, hashes, self._pieces, self._arrays)


def _key(kind: str, shard: Shard, start: int, stop: int) -> str:
    return f"{kind}/{shard.name}[{start}:{stop}]"


def _tensors(arrays: Mapping[str, Array]) -> Iterator[tuple[str, Tensor]]:
    return ((name, torch.from_numpy(array)) for name, array in arrays.items())
