"""An interrupted run is the run that nobody interrupted: every loss and every weight, bit for bit."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import pytest

from tests.trainer.ranks import Run
from trainer.checkpoint.interval import first_save

NewRun = Callable[..., Run]
FSDP = {"engine": {"kind": "fsdp"}}
DDP = {"engine": {"kind": "ddp"}}
OTHERS = [("ddp", 4), ("fsdp", 1), ("fsdp", 4)]


@pytest.mark.parametrize(
    ("engine", "world"),
    [("ddp", 1), ("ddp", 3), ("fsdp", 3), *(pytest.param(*one, marks=pytest.mark.nightly) for one in OTHERS)],
)
def test_bit_identical_after_a_stop_and_a_kill(new_run: NewRun, engine: str, world: int) -> None:
    whole, cut = new_run("whole", engine={"kind": engine}), new_run("cut", engine={"kind": engine})
    assert whole.go(world) == [0] * world, whole.log()

    cut.start(world)
    cut.reaches(2)
    cut.signal(signal.SIGUSR1, rank=world - 1)
    assert cut.wait() == [75] * world, cut.log()
    stopped = cut.events("stop")[0]
    assert 2 <= stopped["step"] < 60 and stopped["reason"] == "signal SIGUSR1"

    cut.start(world)
    cut.reaches(stopped["step"] + 3)
    assert set(cut.kill()) == {-9}
    reached = max(e["step"] for e in cut.events("step"))

    assert cut.go(world) == [0] * world, cut.log()
    resumed = [e["step"] for e in cut.events("resume")]
    assert resumed[0] == 0 and resumed[1] == stopped["step"] <= resumed[2] <= reached < 60
    assert cut.history("loss", "lr", "grad_norm", "hash") == whole.history("loss", "lr", "grad_norm", "hash")
    assert {e["step"]: e["loss"] for e in cut.events("evaluation")} == {
        e["step"]: e["loss"] for e in whole.events("evaluation")
    }
    assert cut.done()["sha256"] == whole.done()["sha256"]


def told(epoch: int, event: str, step: int) -> dict[str, Any]:
    return {"epoch": epoch, "event": event, "step": step}


@pytest.mark.parametrize(
    ("last", "step", "first"),
    [
        ([("resume", 40), ("step", 41), ("step", 60)], 40, 50),  # half of what it came to
        ([("resume", 40), ("step", 41)], 40, 41),
        ([("resume", 40)], 40, 41),  # it came to nothing: neither may this one
        ([("resume", 40), ("stop", 40)], 40, None),  # it was asked to leave, and had nothing to save
        ([("resume", 40), ("step", 60), ("stop", 60)], 40, 50),  # no time was left for its save
        ([("resume", 40), ("step", 60), ("save", 60)], 60, None),
        ([], 40, None),
    ],
)
def test_what_the_last_attempt_says_of_the_next_save(last: list[tuple[str, int]], step: int, first: int | None) -> None:
    others = [told(1, "resume", 0), told(1, "step", 40)]
    assert first_save([*others, *(told(2, *event) for event in last)], 3, step) == first


def test_an_attempt_after_one_that_was_cut_before_its_save_saves_sooner(new_run: NewRun) -> None:
    run = new_run("run", checkpoint={"every": 50})
    run.start(1)
    run.reaches(8)
    assert run.kill() == [-9]
    reached = max(event["step"] for event in run.events("step"))
    assert run.go(1, OUTLAST_CUT_SHORT="1") == [0], run.log()
    assert [event["step"] for event in run.events("save")] == [reached // 2, 50, 60]
    assert f"this one saves after step {reached // 2}" in run.log()
