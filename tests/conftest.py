from __future__ import annotations

import os
import sys
from collections.abc import Generator, Iterator
from typing import Any

import hypothesis
import pytest

from tests import quick_python
from tests.trainer.ranks import Zygote
from tests.workers import WORKER

# A shared, noisy machine: how long an example takes says nothing.
hypothesis.settings.register_profile("outlast", deadline=None, print_blob=True)
hypothesis.settings.load_profile("outlast")

# A test that needs a Slurm names it: a pocket of this machine's user, or what an earlier run has left, is none of its own.
os.environ["SLURM_CONF"] = "/nonexistent/slurm.conf"

CLUSTER = "tests/cluster/test_"
TRAININGS = tuple(f"{CLUSTER}{name}_on_slurm" for name in ("drill", "launchers", "root", "training"))
QUICK, RANKS, SLURM, TRAINING = "quick", "ranks", "slurm", "training"
# Their fixtures are of the module: made once.
TOGETHER = (f"{CLUSTER}refusals", "tests/trainer/test_phases", "tests/trainer/data/test_batches")


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
    """Fast ones first: what needs real ranks, and then what needs a real Slurm, comes at the end.

    Workers take the next one from the front, and begin with what is long, or waits for a Slurm.
    """
    order = (TRAINING, SLURM, RANKS, QUICK) if WORKER else (QUICK, RANKS, SLURM, TRAINING)
    items.sort(key=lambda item: order.index(kind(item.nodeid)))


def kind(nodeid: str) -> str:
    if nodeid.startswith(TRAININGS):
        return TRAINING
    if nodeid.startswith((CLUSTER, "tests/pocket/")):
        return SLURM
    return RANKS if nodeid.startswith("tests/trainer/test_") else QUICK


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """What the workers of `pytest -n` take as one piece."""
    from xdist.scheduler import LoadScopeScheduling

    class Pieces(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            # Each takes all processors of a small machine: two at a time take far more than twice as long.
            if kind(nodeid) == TRAINING:
                return TRAINING
            return nodeid.partition("::")[0] if nodeid.startswith(TOGETHER) else nodeid

    config.option.loadscopereorder = False
    return Pieces(config, log)


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    process = Zygote()
    yield process
    process.close()


@pytest.fixture
def quick_imports(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What this test's process starts by `python -P -m MODULE` has its imports done."""
    file = tmp_path_factory.mktemp("python") / "python"
    monkeypatch.setattr(sys, "executable", str(quick_python.write(file, zygote.address)))
