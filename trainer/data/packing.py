"""Which pieces of documents share a sequence: best fit, longest first. A pure function of their lengths.

A document of n tokens is n - 1 pairs of an input and its target. Where these are more than a sequence has room for, it
is cut into whole sequences and a rest; else it stays in one piece.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

GROUP = 1_000_000
"""Pieces, in the order of the documents, that are packed together: memory is bounded, and a rest finds company."""


def packed(starts: Ints, tokens: int, room: int) -> tuple[Ints, Ints]:
    """starts (documents,): where each begins among `tokens`. Returns the pieces (n, 3): document, first input, pairs;
    sequence by sequence, and where each sequence's begin among them, (sequences + 1,).

    Sequences are numbered as their first documents are, so that the first ones are no other kind than the last.
    """
    pairs = np.maximum(np.diff(starts, append=tokens) - 1, 0)
    each = -(-pairs // room)
    document = np.repeat(np.arange(len(starts)), each)
    offset = (np.arange(len(document)) - np.repeat(np.cumsum(each) - each, each)) * room
    count = np.minimum(room, pairs[document] - offset)
    sequence, sequences = np.empty(len(document), np.int64), 0
    for low in range(0, len(document), GROUP):
        found = _in_order(pack(count[low : low + GROUP], room))
        sequence[low : low + GROUP] = sequences + found
        sequences += int(found.max()) + 1
    pieces = np.stack([document, starts[document] + offset, count], axis=1)[np.argsort(sequence, kind="stable")]
    return pieces, np.concatenate([[0], np.cumsum(np.bincount(sequence, minlength=sequences))])


def _in_order(sequence: Ints) -> Ints:
    """Numbered anew, by where each comes first."""
    _, first, same = np.unique(sequence, return_index=True, return_inverse=True)
    order: Ints = np.argsort(np.argsort(first))[same]
    return order


def pack(lengths: Ints, room: int) -> Ints:
    """lengths (N,), each 1 to `room` -> the sequence of each, (N,), numbered from 0 without a gap.

    Longest first, each goes to the fullest sequence that has room for it; of equals the earlier one. One integer's
    bits say which amounts of room there are, so a search is a shift.
    """
    order = np.argsort(-lengths, kind="stable")
    found = np.empty(len(lengths), np.int64)
    by_room: list[list[int]] = [[] for _ in range(room + 1)]
    there, count, out = 0, 0, []
    for length in lengths[order].tolist():
        fitting = there >> length
        if fitting:
            left = length + (fitting & -fitting).bit_length() - 1
            same = by_room[left]
            sequence = same.pop()
            if not same:
                there ^= 1 << left
        else:
            left, sequence = room, count
            count += 1
        out.append(sequence)
        left -= length
        if left:
            if not by_room[left]:
                there |= 1 << left
            by_room[left].append(sequence)
    found[order] = out
    return found
