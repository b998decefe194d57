"""Node lists: a table, and a fuzz against `scontrol show hostnames` (which needs no controller)."""

from __future__ import annotations

import os
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slurm.errors import SlurmError
from slurm.nodelist import expand


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("node1", ["node1"]),
        ("a,b", ["a", "b"]),
        ("a[1-3]", ["a1", "a2", "a3"]),
        ("a[08-11,1]", ["a08", "a09", "a10", "a11", "a1"]),
        ("a[1-2]b[3-4],x", ["a1b3", "a1b4", "a2b3", "a2b4", "x"]),
        ("r[01-02]-n[001]", ["r01-n001", "r02-n001"]),
        ("n[009-010]-gpu", ["n009-gpu", "n010-gpu"]),
        ("", []),
    ],
)
def test_table(text: str, names: list[str]) -> None:
    assert expand(text) == names


@pytest.mark.parametrize(
    "text",
    ["a[1-", "a]1[", "a[[1]]", "a[x-y]", "a[3-1]", "a[]", "a[1,,2]", "a[²]", "a slots=9", "a\nb", "-a", "$(id)", "a;b"],
)
def test_broken_lists_are_refused(text: str) -> None:
    with pytest.raises(SlurmError):
        expand(text)


RANGES = st.lists(
    st.tuples(st.integers(0, 40), st.integers(0, 6), st.integers(1, 4)).map(
        lambda t: f"{t[0]:0{t[2]}d}-{t[0] + t[1]:0{t[2]}d}" if t[1] else f"{t[0]:0{t[2]}d}"
    ),
    min_size=1,
    max_size=3,
).map(lambda items: "[" + ",".join(items) + "]")
PARTS = st.builds(str.__add__, st.sampled_from(["n", "gpu-", "r1c"]), RANGES)


@pytest.fixture(scope="module")
def slurm_conf(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """scontrol wants a slurm.conf even to expand names; it asks no controller for it."""
    conf = tmp_path_factory.mktemp("conf") / "slurm.conf"
    conf.write_text("ClusterName=none\nSlurmctldHost=localhost\nNodeName=n1\nPartitionName=p Nodes=n1\n")
    return {**os.environ, "SLURM_CONF": str(conf)}


@settings(max_examples=60, deadline=None)
@given(text=st.lists(PARTS, min_size=1, max_size=3).map(",".join))
def test_same_as_scontrol(slurm_conf: dict[str, str], text: str) -> None:
    argv = ["scontrol", "show", "hostnames", text]
    shown = subprocess.run(argv, capture_output=True, text=True, check=True, env=slurm_conf)
    assert expand(text) == shown.stdout.split()
