"""Several sources in one stream: exact shares in every block, each sequence once an epoch, the same from anywhere."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.data.mixture import BLOCK, Mixture, apportion

WEIGHT = st.floats(0.01, 10)
NAMES = ("books", "chats", "general")
SIZES = st.lists(st.integers(1, 700), min_size=1, max_size=3).map(lambda sizes: dict(zip(NAMES, sizes, strict=False)))


@st.composite
def mixtures(draw: st.DrawFn) -> tuple[Mixture, dict[str, int], int]:
    """A mixture, its sizes and its slots."""
    sizes, slots = draw(SIZES), draw(st.integers(1, 5 * BLOCK))
    ends = {name: (draw(WEIGHT), draw(WEIGHT)) for name in sizes}
    weights = ends if draw(st.booleans()) else {name: (begin, begin) for name, (begin, _) in ends.items()}
    return Mixture(sizes, weights, slots, draw(st.integers(0, 2**40)), draw(st.integers(0, 9))), sizes, slots


@given(st.integers(0, 5000), st.lists(st.floats(0, 1), min_size=1, max_size=9).filter(any))
def test_slots_are_shared_out_whole_and_none_is_more_than_one_away(slots: int, weights: list[float]) -> None:
    shares = np.array(weights) / sum(weights)
    counts = apportion(slots, shares)
    assert counts.sum() == slots and (counts >= 0).all()
    assert (np.abs(counts - slots * shares) < 1 + 1e-9).all()


def test_of_equal_remainders_the_first_source_gets_the_slot() -> None:
    assert apportion(10, np.array([0.7, 0.2, 0.1])).tolist() == [7, 2, 1]
    assert apportion(4, np.full(3, 1 / 3)).tolist() == [2, 1, 1]


def source_of(ids: np.ndarray, sizes: dict[str, int]) -> Counter[str]:
    ends = np.cumsum(list(sizes.values()))
    return Counter(list(sizes)[number] for number in np.searchsorted(ends, ids, "right"))


@given(st.integers(0, 2**40), st.integers(0, 9))
def test_every_block_holds_the_shares_exactly(seed: int, stage: int) -> None:
    sizes = {"books": 5000, "general": 300}
    mixture = Mixture(sizes, {"books": (7.0, 7.0), "general": (3.0, 3.0)}, 3 * BLOCK + 100, seed, stage)
    for block in range(3):
        found = source_of(mixture.ids(block * BLOCK, BLOCK), sizes)
        assert found == {"books": 717, "general": 307}  # 716.8 and 307.2
    assert source_of(mixture.ids(3 * BLOCK, 100), sizes) == {"books": 70, "general": 30}  # a short block too


@settings(max_examples=40)
@given(mixtures(), st.data())
def test_any_slice_from_anywhere_is_the_same(made: tuple[Mixture, dict[str, int], int], data: st.DataObject) -> None:
    mixture, sizes, slots = made
    whole = mixture.ids(0, slots)
    first = data.draw(st.integers(0, slots - 1))
    count = data.draw(st.integers(1, slots - first))
    assert (mixture.ids(first, count) == whole[first : first + count]).all()
    assert mixture.seen(first) == {name: source_of(whole[:first], sizes)[name] for name in sizes}
    assert sum(mixture.seen(slots).values()) == slots


@settings(max_examples=40)
@given(mixtures())
def test_an_epoch_of_a_source_holds_each_sequence_once(made: tuple[Mixture, dict[str, int], int]) -> None:
    mixture, sizes, slots = made
    used, offset = mixture.ids(0, slots), 0
    for size in sizes.values():
        own = used[(used >= offset) & (used < offset + size)]
        for epoch in range(len(own) // size):
            assert sorted(own[epoch * size : (epoch + 1) * size]) == list(range(offset, offset + size))
        assert len(set(own[len(own) // size * size :])) == len(own) % size
        offset += size


def test_a_weight_moves_in_a_straight_line() -> None:
    sizes, blocks = {"books": 10_000, "general": 500}, 40
    mixture = Mixture(sizes, {"books": (0.9, 0.7), "general": (0.1, 0.3)}, blocks * BLOCK, 1, 0)
    for block in range(blocks):
        share = source_of(mixture.ids(block * BLOCK, BLOCK), sizes)["general"] / BLOCK
        assert share == pytest.approx(0.1 + 0.2 * (block + 0.5) / blocks, abs=1 / BLOCK)
    assert mixture.seen(blocks * BLOCK)["general"] == pytest.approx(0.2 * blocks * BLOCK, abs=blocks)


def test_a_source_without_a_weight_never_comes() -> None:
    mixture = Mixture({"books": 10, "general": 5}, {"general": (2.0, 2.0)}, 3000, 1, 0)
    assert mixture.seen(3000) == {"books": 0, "general": 3000}


def test_seed_stage_and_block_each_give_another_order() -> None:
    sizes, weights = {"books": 900, "general": 900}, {"books": (1.0, 1.0), "general": (1.0, 1.0)}
    orders = {
        tuple(Mixture(sizes, weights, 2 * BLOCK, seed, stage).ids(first, BLOCK))
        for seed, stage, first in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, BLOCK)]
    }
    assert len(orders) == 4
    books, general = (Mixture(sizes, {name: (1.0, 1.0)}, 900, 0, 0).ids(0, 900) for name in sizes)
    assert (books != general - 900).any()  # sources of one size have orders of their own


def test_the_order_is_pinned() -> None:
    """A change here would give every run that resumes other samples."""
    mixture = Mixture({"a": 5, "b": 3}, {"a": (3.0, 3.0), "b": (1.0, 2.0)}, 2000, 7, 1)
    assert mixture.ids(1020, 12).tolist() == [7, 6, 1, 7, 6, 5, 4, 2, 3, 0, 7, 6]
    assert mixture.seen(2000) == {"a": 1339, "b": 661}
