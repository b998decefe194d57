"""Which pieces of documents share a sequence."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from trainer.data import packing
from trainer.data.packing import packed

LENGTHS = st.lists(st.integers(1, 70), max_size=60)


def pack(lengths: list[int], room: int) -> tuple[list[list[tuple[int, int, int]]], np.ndarray]:
    """The pieces of each sequence, and where the documents begin."""
    starts = np.cumsum([0, *lengths])[:-1]
    pieces, packs = packed(starts, sum(lengths), room)
    return [[tuple(p) for p in pieces[a:b].tolist()] for a, b in zip(packs, packs[1:], strict=False)], starts


@given(lengths=LENGTHS, room=st.integers(1, 40))
def test_every_pair_is_in_one_place(lengths: list[int], room: int) -> None:
    sequences, starts = pack(lengths, room)
    seen = [at for sequence in sequences for _, first, pairs in sequence for at in range(first, first + pairs)]
    assert sorted(seen) == [at for start, n in zip(starts, lengths, strict=True) for at in range(start, start + n - 1)]
    for sequence in sequences:
        assert 0 < sum(pairs for _, _, pairs in sequence) <= room
        for document, first, pairs in sequence:
            assert starts[document] <= first and first + pairs < starts[document] + lengths[document]


@given(lengths=LENGTHS, room=st.integers(1, 40))
def test_a_document_is_cut_only_where_it_must_be(lengths: list[int], room: int) -> None:
    sequences, starts = pack(lengths, room)
    for document, first, pairs in (piece for sequence in sequences for piece in sequence):
        offset = first - starts[document]
        assert offset % room == 0 and pairs == min(room, lengths[document] - 1 - offset)


@given(lengths=LENGTHS, room=st.integers(1, 40))
def test_sequences_are_as_full_as_best_fit_makes_them(lengths: list[int], room: int) -> None:
    """No two could be one; and they follow each other as their first documents do."""
    sequences, _ = pack(lengths, room)
    filled = sorted(sum(pairs for _, _, pairs in sequence) for sequence in sequences)
    assert len(filled) < 2 or filled[0] + filled[1] > room
    firsts = [sequence[0][:2] for sequence in sequences]
    assert firsts == sorted(firsts)


def test_groups_are_packed_by_themselves(monkeypatch) -> None:
    monkeypatch.setattr(packing, "GROUP", 3)
    sequences, _ = pack([3] * 8, 5)
    assert [[document for document, _, _ in sequence] for sequence in sequences] == [[0, 1], [2], [3, 4], [5], [6, 7]]
