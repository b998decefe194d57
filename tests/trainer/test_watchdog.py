"""A rank that hangs: every rank's stacks on disk, all leave with 86, and the one that is missed is named."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.trainer.ranks import Run
from tests.waiting import wait_until
from trainer.runtime import record_collectives
from trainer.stop.stragglers import WINDOW, Stragglers
from trainer.stop.watchdog import ranks_behind

NewRun = Callable[..., Run]
LIMIT = 4.0
SHAPE = {
    "train": {"steps": 100_000},
    "evaluation": {"every": 0},
    "watchdog": {"factor": 1.0, "step_seconds": LIMIT, "start_seconds": 20.0, "save_seconds": 60.0},
}


def stacks(run: Run) -> dict[str, str]:
    return {path.stem: path.read_text() for path in sorted(logs(run).glob("*.stacks"))}


def logs(run: Run) -> Path:
    return run.path / "logs" / "attempt-0001"


def test_a_rank_that_sleeps_in_its_step(new_run: NewRun) -> None:
    run = new_run("run", **SHAPE)
    run.start_with_fault(3, "step", 1, "wait")
    run.reaches_fault()
    began = time.monotonic()
    assert run.wait() == [86, 86, 86], run.log()
    assert LIMIT < time.monotonic() - began < LIMIT + 30
    found = stacks(run)
    assert list(found) == ["rank-0000", "rank-0001", "rank-0002"]
    assert "in fault" in found["rank-0001"] and "in fault" not in found["rank-0000"]
    (hang,) = run.events("hang")
    assert hang["phase"] == "step" and hang["missing"] == [] and hang["behind"] == [1] and hang["seconds"] > LIMIT
    assert "fewer collectives than others: ranks 1" in run.log() and "no sign of life" in run.log(2)


def test_a_rank_that_is_frozen_is_missed(new_run: NewRun) -> None:
    run = new_run("run", **SHAPE)
    run.start(3)
    run.reaches(3)
    run.signal(signal.SIGSTOP, rank=0)
    codes = [run.zygote.wait(pid) for pid in run.pids[1:]]
    assert codes == [86, 86], run.log(1)
    assert list(stacks(run)) == ["rank-0001", "rank-0002"]
    (hang,) = run.events("hang")
    assert hang["missing"] == [0] and "no stacks of ranks 0" in run.log(1)
    run.signal(signal.SIGKILL, rank=0)
    assert run.wait()[0] == -signal.SIGKILL


def test_a_rank_that_does_not_let_go_of_the_interpreter_ends_all_the_same(new_run: NewRun) -> None:
    """Its own thread cannot run: the last resort dumps the stacks into its log."""
    run = new_run("run", **SHAPE)
    run.start_with_fault(2, "step", 1, "hold")
    run.reaches_fault()
    codes = run.wait()
    assert codes == [86, 1], run.log()
    assert list(stacks(run)) == ["rank-0000"] and run.events("hang")[0]["missing"] == [1]
    assert "in fault" in run.log(1) and "Timeout" in run.log(1)


def test_a_long_phase_of_its_own_is_no_hang(new_run: NewRun) -> None:
    """Saves that take longer than a step may."""
    shape = {**SHAPE, "watchdog": {**SHAPE["watchdog"], "step_seconds": 1.5}}
    run = new_run("run", **shape, checkpoint={"every": 5})
    run.start_with_fault(2, "save", 1, "3")
    wait_until(lambda: len(run.events("save")) == 2, run.log())
    run.signal(signal.SIGTERM)
    assert run.wait() == [75, 75], run.log()
    assert not stacks(run) and not run.events("hang")


def test_a_watchdog_that_is_switched_off_ends_nothing(new_run: NewRun) -> None:
    run = new_run("run", **{**SHAPE, "watchdog": {"factor": 0.0, "step_seconds": 1.0}})
    run.start_with_fault(2, "step", 1, "wait")
    run.reaches_fault()
    end = time.monotonic() + 4  # as long as the others need to find a hang
    wait_until(lambda: time.monotonic() > end)
    run.go_on()
    run.reaches(10)
    run.signal(signal.SIGTERM)
    assert run.wait() == [75, 75], run.log()


def test_who_is_behind() -> None:
    begun = {
        0: {"default": 7, "control": 3},
        1: {"default": 6, "control": 3},
        3: {"default": 7, "control": 3, "own": 1},
    }
    assert ranks_behind(begun) == [1]
    assert ranks_behind({0: {"default": 7}, 1: {"own": 1}}) == []  # not of that group
    assert ranks_behind({0: {"default": 7}, 1: {"default": 7}}) == []


def test_nccls_own_watchdog_writes_into_the_attempts_logs_unless_the_user_said_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith(("TORCH_NCCL_", "TORCH_FR_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("TORCH_FR_BUFFER_SIZE", "10")
    record_collectives(tmp_path)
    assert os.environ.pop("TORCH_FR_DUMP_TEMP_FILE") == f"{tmp_path}/nccl-rank-"
    assert os.environ["TORCH_FR_BUFFER_SIZE"] == "10" and os.environ.pop("TORCH_NCCL_DUMP_ON_TIMEOUT") == "1"
    monkeypatch.setenv("TORCH_NCCL_DEBUG_INFO_TEMP_FILE", "/mine")
    record_collectives(tmp_path)
    assert "TORCH_FR_DUMP_TEMP_FILE" not in os.environ
    del os.environ["TORCH_NCCL_DUMP_ON_TIMEOUT"]


# --- slow ranks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["ddp", pytest.param("fsdp", marks=pytest.mark.nightly)])
def test_a_slow_rank_is_named_with_its_node(new_run: NewRun, engine: str) -> None:
    run = new_run("run", **SHAPE, engine={"kind": engine})
    run.start_with_fault(3, "attention", 1, "0.01")  # twice a step
    wait_until(lambda: run.events("straggler"), run.log(), seconds=180)
    run.signal(signal.SIGTERM)
    assert run.wait() == [75] * 3, run.log()
    slowest = max(run.events("straggler"), key=lambda event: event["ratio"])
    assert slowest["rank"] == 1 and slowest["host"] == os.uname().nodename and slowest["ratio"] > 1.15
    assert f"rank 1 on {os.uname().nodename} is slow" in run.log()


def test_slow_is_against_the_median_over_a_window() -> None:
    stragglers = Stragglers(["a", "b", "c", "d"])
    for _ in range(WINDOW - 1):
        assert stragglers.saw_step([1.0, 1.1, 1.2, 1.0]) == []
    assert stragglers.saw_step([1.0, 1.1, 5.0, 1.0]) == [
        (2, "c", pytest.approx((199 * 1.2 + 5) / (199 * 1.05 + 1.05), rel=0.01))
    ]
    for _ in range(WINDOW):
        found = stragglers.saw_step([0.0] * 4)
    assert found == []  # a model whose layers are not known
