from __future__ import annotations

import os
from collections.abc import Generator

import hypothesis
import pytest

# A shared, noisy machine: how long an example takes says nothing.
hypothesis.settings.register_profile("outlast", deadline=None, print_blob=True)
hypothesis.settings.load_profile("outlast")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With CI=true nothing is left out silently: a skipped test is a failed one."""
    report = yield
    if report.skipped and os.environ.get("CI") == "true":
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was left out: {report.longrepr}"
    return report


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast ones first: what needs real ranks, and then what needs a real Slurm, comes at the end."""
    slow = ("tests/trainer/test_", "tests/pocket/", "tests/cluster/")
    items.sort(key=lambda item: next((rank for rank, start in enumerate(slow, 1) if item.nodeid.startswith(start)), 0))
