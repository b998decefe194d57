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

    shares: (sources,), with the sum 1.
    """
    exact = slots * shares
    counts = np.floor(exact).astype(np.int64)
    largest = np.argsort(counts - exact, kind="stable")  # of equal remainders the first source's
    counts[largest[: slots - counts.sum()]] += 1
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
        self._counts = np.stack([apportion(BLOCK, shares) for shares in self._shares])  # of a whole block
        each = self._counts * np.diff(self._first)[:, None]
        self._before = np.cumsum(each, axis=0) - each  # (pieces, sources): slots of each source before the piece
        self._kept = lru_cache(4)(self._block)  # the next steps' slots lie in the same one

    def ids(self, first: int, count: int) -> Array:
        """The sequences in slots first .. first + count - 1: their numbers in the row of all sources, one behind the
        other. Item k of a source is its permutation of epoch k // size at k % size."""
        parts = [self._kept(block) for block in range(first // BLOCK, -(-(first + count) // BLOCK))]
        skipped = first % BLOCK
        source, item = (np.concatenate(column)[skipped : skipped + count] for column in zip(*parts, strict=True))
        out = np.empty(count, np.int64)
        for number in np.unique(source):
            mine = source == number
            items = item[mine]  # consecutive
            key = f"{self._stage}/{self._names[number]}"
            own = stream(int(items[0]), len(items), int(self._sizes[number]), self._seed, key)
            out[mine] = self._offsets[number] + own
        return out

    def seen(self, slots: int) -> dict[str, int]:
        """Sequences of each source in the first `slots`."""
        block, rest = divmod(slots, BLOCK)
        counts = self._begin(block)
        if rest:
            counts = counts + np.bincount(self._block(block)[0][:rest], minlength=len(counts))
        return dict(zip(self._names, counts.tolist(), strict=True))

    def _piece(self, block: int) -> int:
        return min(int(np.searchsorted(self._first, block, "right")), len(self._counts)) - 1

    def _begin(self, block: int) -> Array:
        """Slots of each source before a block, (sources,)."""
        piece = self._piece(block)
        before: Array = self._before[piece] + (block - self._first[piece]) * self._counts[piece]
        return before

    def _block(self, block: int) -> tuple[Array, Array]:
        """Source of each slot of a block, and which item of it the slot holds."""
        piece, slots = self._piece(block), min(BLOCK, self._slots - block * BLOCK)
        counts = self._counts[piece] if slots == BLOCK else apportion(slots, self._shares[piece])
        order = permutation(np.arange(slots), slots, self._seed, self._stage, block)
        source = np.repeat(np.arange(len(counts)), counts)[order]
        item = np.empty(slots, np.int64)
        start = self._begin(block) - (np.cumsum(counts) - counts)
        item[np.argsort(source, kind="stable")] = np.repeat(start, counts) + np.arange(slots)
        return source, item
