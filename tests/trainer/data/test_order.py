from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.order import batch_indices, permutation, stream

seeds = st.integers(0, 2**70)


@given(
    n=st.one_of(st.sampled_from([1, 2, 3, 4, 5, 7, 16, 64, 97, 256, 257, 1009]), st.integers(1, 3000)),
    seed=seeds,
)
def test_permutation_is_a_bijection(n: int, seed: int) -> None:
    assert sorted(permutation(np.arange(n), n, seed, 0, 0)) == list(range(n))


def test_any_subset_gives_the_same_values() -> None:
    whole = permutation(np.arange(1000), 1000, 1, 2, 3)
    some = np.array([999, 0, 5, 5])
    assert (permutation(some, 1000, 1, 2, 3) == whole[some]).all()


def test_seed_stage_and_epoch_each_give_another_order() -> None:
    orders = {tuple(permutation(np.arange(50), 50, *key)) for key in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]}
    assert len(orders) == 4


def test_order_is_pinned() -> None:
    """A change here would give every run that resumes other samples."""
    assert permutation(np.arange(10), 10, 0, 0, 0).tolist() == [1, 5, 8, 6, 3, 0, 2, 7, 9, 4]


def test_an_index_outside_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\[0, 5\)"):
        permutation(np.array([5]), 5, 0, 0, 0)


@pytest.mark.parametrize("n", [4096, 5000, 100_003])
def test_the_order_is_well_mixed(n: int) -> None:
    """Where each eighth of the input lands, in 8 bins: chi-square, 49 degrees of freedom (mean 49, sd 10)."""
    values = []
    for seed in range(8):
        out = permutation(np.arange(n), n, seed, 0, 0)
        table = np.histogram2d(np.arange(n), out, bins=8)[0]
        values.append(((table - n / 64) ** 2 / (n / 64)).sum())
    assert 30 < np.mean(values) < 70
    assert abs(np.corrcoef(np.arange(n), out)[0, 1]) < 5 / np.sqrt(n)


@given(n=st.integers(1, 60), batch=st.integers(1, 150), seed=seeds)
def test_each_sequence_once_an_epoch_whatever_the_batch(n: int, batch: int, seed: int) -> None:
    steps = -(-3 * n // batch)
    used = np.concatenate([batch_indices(step, batch, n, seed) for step in range(steps)])
    for epoch in range(3):
        assert sorted(used[epoch * n : (epoch + 1) * n]) == list(range(n))


@given(n=st.integers(1, 60), batch=st.integers(1, 150), step=st.integers(0, 10**12))
def test_a_batch_is_a_slice_of_the_stream(n: int, batch: int, step: int) -> None:
    wider = stream(step * batch, 2 * batch, n, seed=3)
    assert (batch_indices(step, batch, n, 3) == wider[:batch]).all()
    assert (batch_indices(step + 1, batch, n, 3) == wider[batch:]).all()
