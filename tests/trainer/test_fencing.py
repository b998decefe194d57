"""A run has one owner: an attempt that a later one has replaced leaves by itself, at once, and writes nothing more."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

from tests.trainer.ranks import Run
from tests.trainer.test_saved_state import verify
from tests.waiting import wait_until

NewRun = Callable[..., Run]
SHAPE = {"train": {"steps": 100_000}, "checkpoint": {"every": 50}, "evaluation": {"every": 0}}


def test_a_zombie_leaves_within_seconds_of_a_new_claim(new_run: NewRun) -> None:
    run = new_run("run", **SHAPE)
    run.start(3)
    run.reaches(3)
    claimed = time.time()
    (run.path / "claims" / "0002.json").write_text('{"epoch": 2}')
    assert run.wait() == [76] * 3, run.log()
    (stop,) = run.events("stop")
    assert stop["reason"].startswith("fenced") and stop["time"] - claimed < 10  # looks every half second
    assert f"step-{stop['step']:08d}-e0001" not in run.checkpoints()


def test_a_zombie_that_wakes_up_beside_the_new_owner(new_run: NewRun) -> None:
    """Frozen in its steps, as on a node that was given up; the new attempt saves, and then the old one goes on."""
    run = new_run("run", **SHAPE)
    run.start(2)
    run.reaches(60)
    run.signal(signal.SIGSTOP)
    old, saved = run.pids, set(run.checkpoints())
    run.start(2)
    wait_until(lambda: [e for e in run.events("save") if e["epoch"] == 2], run.log())
    new, run.pids = run.pids, old
    run.signal(signal.SIGCONT)
    assert run.wait() == [76, 76], run.log()
    run.pids = new
    run.signal(signal.SIGTERM)
    assert run.wait() == [75, 75], run.log()
    assert {name for name in run.checkpoints() if name.endswith("e0001")} <= saved
    for name in run.checkpoints():
        verify(run.path / "checkpoints" / name)
