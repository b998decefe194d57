from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurm.node.hostfile import text

HOSTS = st.lists(st.from_regex(r"\A[a-z][a-z0-9.-]{0,12}\Z"), min_size=1, max_size=6, unique=True)


@pytest.mark.filterwarnings("ignore")  # deepspeed's own imports warn
@given(HOSTS, st.integers(1, 16))
def test_deepspeeds_own_parser_reads_it(hosts: list[str], slots: int) -> None:
    from deepspeed.launcher.runner import _parse_hostfile

    assert dict(_parse_hostfile(text(hosts, slots).splitlines())) == dict.fromkeys(hosts, slots)
