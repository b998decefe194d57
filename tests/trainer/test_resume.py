"""An interrupted run is the run that nobody interrupted: every loss and every weight, bit for bit."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from tests.trainer.ranks import Run

NewRun = Callable[..., Run]
FSDP = {"engine": {"kind": "fsdp"}}
DDP = {"engine": {"kind": "ddp"}}


@pytest.mark.parametrize(
    ("engine", "world"), [("ddp", 1), ("ddp", 3), ("ddp", 4), ("fsdp", 1), ("fsdp", 3), ("fsdp", 4)]
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
    assert cut.history("loss", "grad_norm", "hash") == whole.history("loss", "grad_norm", "hash")
    assert {e["step"]: e["loss"] for e in cut.events("evaluation")} == {
        e["step"]: e["loss"] for e in whole.events("evaluation")
    }
    assert cut.done()["sha256"] == whole.done()["sha256"]
