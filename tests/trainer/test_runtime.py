"""Which device a rank takes, checked over all ranks; the GPUs themselves are made up here."""

from __future__ import annotations

import pytest

from settings import ConfigError
from trainer.runtime import check_devices


@pytest.mark.parametrize(
    "devices",
    [
        [("n1", None), ("n1", None), ("n2", None)],  # CPUs are shared
        [("n1", "GPU-a"), ("n1", "GPU-b"), ("n2", "GPU-c"), ("n2", "GPU-d")],
        [("n1", "GPU-a"), ("n2", "GPU-a")],  # emulated GPUs may have the same identity on two hosts
        [("n1", "GPU-a")],
    ],
)
def test_devices_that_differ(devices: list[tuple[str, str | None]]) -> None:
    check_devices(devices)


@pytest.mark.parametrize(
    ("devices", "line"),
    [
        ([("n1", "GPU-a"), ("n2", "GPU-b"), ("n2", "GPU-b")], "ranks 1 and 2 on n2 have the same GPU GPU-b: "),
        ([("n1", "GPU-a"), ("n2", None)], "rank 1 on n2 sees no GPU, others do: "),
        ([("n1", None), ("n2", "GPU-a")], "rank 0 on n1 sees no GPU, others do: "),
    ],
)
def test_devices_that_are_refused(devices: list[tuple[str, str | None]], line: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_devices(devices)
    assert str(error.value).startswith(line + "every rank needs its own") and "\n" not in str(error.value)
