"""Several sources in one stream, by weight: a slot's sequence is a pure function of (seed, stage, slot).

A block of slots holds each source's share of them, in an order shuffled by (seed, stage, block). So the shares are
exact in every block, and how often a source came before a slot is known without a look at what lies before its block.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from trainer.data.order import permutation, stream

Array = npt.NDArray[np.int64]

BLOCK = 1024
"""Slots. A stage's last block is shorter, with the same shares of what there is."""
_PIECES = 1024  # in which a changing weight is constant: their counts are kept, and a stage of any length has no more


def apportion(slots: int, shares: npt.NDArray[np.float64]) -> Array:
    """Whole slots for each share by the largest remainder: less than one away from slots * share, together `slots`.

    shares: (..., sources), each row with the sum 1.
    """
    exact = slots * shares
    counts = np.floor(exact).astype(np.int64)
    left = slots - counts.sum(axis=-1, keepdims=True)
    place = np.argsort(np.argsort(counts - exact, axis=-1, kind="stable"), axis=-1)  # of equals the first comes first
    counts[place < left] += 1
    return counts


class Mixture:
    """Of one stage. Sources are numbered in the order of `sizes`."""

    def __init__(
        self, sizes: Mapping[str, int], weights: Mapping[str, tuple[float, float]], slots: int, seed: int, stage: int
    ) -> None:
        """sizes: sequences of each source; weights: at the begin and at the end, 0 for a source that is not named."""
        self._names, self._sizes = list(sizes), np.array(list(sizes.values()))
        self._slots, self._seed, self._stage = slots, seed, stage
        self._offsets = np.cumsum(self._sizes) - self._sizes
        begin, end = np.array([weights.get(name, (0.0, 0.0)) for name in sizes]).T
        blocks = -(-slots // BLOCK)
        pieces = min(blocks, _PIECES) if (begin != end).any() else 1
        middle = (np.arange(pieces)[:, None] + 0.5) / pieces
        at = begin + (end - begin) * middle
        self._shares = at / at.sum(axis=1, keepdims=True)  # (pieces, sources)
        self._first = np.arange(pieces + 1) * blocks // pieces  # block that each piece begins with
        self._counts = apportion(BLOCK, self._shares)  # of a whole block
        each = self._counts * np.diff(self._first)[:, None]
        self._before = np.cumsum(each, axis=0) - each  # (pieces, sources): slots of each source before the piece
        self._kept = lru_cache(4)(self._block)  # the next steps' slots lie in the same one

    def ids(self, first: int, count: int) -> Array:
        """The sequences in slots first .. first + count - 1: their numbers in the row of all sources, one behind the
        other. Item k of a source is its permutation of epoch k // size at k % size."""
        blocks = range(first // BLOCK, -(-(first + count) // BLOCK))
        skipped = first % BLOCK
        return np.concatenate([self._kept(block) for block in blocks])[skipped : skipped + count]

    def seen(self, slots: int) -> dict[str, int]:
        """Sequences of each source in the first `slots`."""
        block, rest = divmod(slots, BLOCK)
        counts = self._begin(block)
        if rest:
            counts = counts + np.bincount(self._sources(block)[:rest], minlength=len(counts))
        return dict(zip(self._names, counts.tolist(), strict=True))

    def _piece(self, block: int) -> int:
        return min(int(np.searchsorted(self._first, block, "right")), len(self._counts)) - 1

    def _begin(self, block: int) -> Array:
        """Slots of each source before a block, (sources,)."""
        piece = self._piece(block)
        before: Array = self._before[piece] + (block - self._first[piece]) * self._counts[piece]
        return before

    def _block(self, block: int) -> Array:
        """The sequences in a block's slots. Its items of a source are consecutive ones, in the order of the slots."""
        source, counts = self._sources(block), self._counts_of(block)
        out, begin = np.empty(len(source), np.int64), self._begin(block)
        for number in np.flatnonzero(counts):
            key = f"{self._stage}/{self._names[number]}"
            items = stream(int(begin[number]), int(counts[number]), int(self._sizes[number]), self._seed, key)
            out[source == number] = self._offsets[number] + items
        return out

    def _sources(self, block: int) -> Array:
        """The source of each slot of a block."""
        counts = self._counts_of(block)
        slots = int(counts.sum())
        order = permutation(np.arange(slots), slots, self._seed, self._stage, block)
        return np.repeat(np.arange(len(counts)), counts)[order]

    def _counts_of(self, block: int) -> Array:
        """Slots of each source in a block, (sources,)."""
        piece, slots = self._piece(block), min(BLOCK, self._slots - block * BLOCK)
        return self._counts[piece] if slots == BLOCK else apportion(slots, self._shares[piece])
