"""The order of the samples: a pure function of (seed, stage, step); the state of the data is one integer.

Nothing here knows world size, workers or history: a run resumed on other nodes sees the same global batches.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import xxhash

_ROUNDS = 8  # 4 make a Feistel network pseudorandom; small halves mix badly and need more


def permutation(index: npt.NDArray[np.int64], n: int, seed: int, stage: int | str, epoch: int) -> npt.NDArray[np.int64]:
    """Where a keyed bijection of [0, n) sends each `index`: O(1) memory, any order, any subset.

    A Feistel network permutes the next power of four; what falls outside [0, n) is sent through again until
    it lands inside (cycle walking), which keeps it a bijection and takes less than 4 rounds on average.
    Raises ValueError for an index outside [0, n).
    """
    if index.size and not 0 <= index.min() <= index.max() < n:
        raise ValueError(f"an index in [0, {n}) is expected, got {index.min()} to {index.max()}")
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    keys = [xxhash.xxh3_64_intdigest(f"{seed}/{stage}/{epoch}/{r}".encode()) for r in range(_ROUNDS)]
    out = _feistel(index.astype(np.uint64), half, keys)
    outside = out >= n
    while outside.any():
        out[outside] = _feistel(out[outside], half, keys)
        outside = out >= n
    return out.astype(np.int64)


def _feistel(value: npt.NDArray[np.uint64], half: int, keys: list[int]) -> npt.NDArray[np.uint64]:
    """A bijection of [0, 4**half)."""
    bits, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = value >> bits, value & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ np.uint64(key)) & mask)
    return (left << bits) | right


def _mix(value: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finalizer of splitmix64: every input bit reaches every output bit."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def stream(first: int, count: int, sequences: int, seed: int, stage: int | str = 0) -> npt.NDArray[np.int64]:
    """Items first .. first + count - 1 of the endless stream of sequence numbers.

    Item k is the permutation of epoch k // sequences at k % sequences: an epoch holds each sequence once.
    """
    out = np.empty(count, np.int64)
    for epoch in range(first // sequences, -(-(first + count) // sequences)):
        start, stop = max(first, epoch * sequences), min(first + count, (epoch + 1) * sequences)
        index = np.arange(start, stop) - epoch * sequences
        out[start - first : stop - first] = permutation(index, sequences, seed, stage, epoch)
    return out


def batch_indices(step: int, global_batch_size: int, sequences: int, seed: int) -> npt.NDArray[np.int64]:
    """The sequence numbers of global batch `step`, counted from 0: the batch that the run uses after `step`
    finished steps. Shape (global_batch_size,); a batch may span two epochs."""
    return stream(step * global_batch_size, global_batch_size, sequences, seed, stage=0)
