from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurm.walltime import Walltime


@given(st.integers(1, 10**7))
def test_what_is_written_is_read_back(seconds: int) -> None:
    assert Walltime.parse(str(Walltime(seconds=seconds))) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("text", "hours"), [("24:00:00", 24), ("2-00:00:00", 48), ("1-12", 36), ("1-12:30", 36.5), ("100:00:00", 100)]
)
def test_forms(text: str, hours: float) -> None:
    assert Walltime.parse(text) == timedelta(hours=hours)


@pytest.mark.parametrize(
    "text", ["24:00", "30", "86400", "1:60:00", "00:00:00", "1-", "-1:00:00", "1d", "", "1:00:00:00"]
)
def test_ambiguous_and_broken_ones_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="walltime|59"):
        Walltime.parse(text)
