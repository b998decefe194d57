"""The report of a run that real ranks have made."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

import pytest

from durable import append_line
from tests.trainer.ranks import Run
from timeline import LOST, STEPS
from trainer.report import at_the_end
from trainer.report.files import made


def test_five_interruptions_leave_one_curve_whole_time_and_no_loss(new_run: Callable[..., Run]) -> None:
    """Killed and stopped in turn; each attempt's end written as by a supervisor. The clock is the test's own."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run, began = new_run("run", tensorboard=True, report=True, checkpoint={"every": 6}), time.time()
    for attempt, step in enumerate((9, 15, 24, 33, 41, 60), 1):
        start = time.time()
        run.start(1)
        run.reaches(step)
        if step == 60:
            assert run.wait() == [0], run.log()
        elif attempt % 2:
            run.kill()
        else:
            run.signal(signal.SIGTERM)
            assert run.wait() == [75], run.log()
        cause = "done" if step == 60 else "crash" if attempt % 2 else "preemption"
        end = {"attempt": attempt, "job_id": None, "start": start, "end": time.time(), "cause": cause, "reason": ""}
        append_line(run.path / "attempts.jsonl", end)
    ended = time.time()
    assert ">done<" in (run.path / "report.html").read_text()  # as it stood before DONE
    report = made(run.path)
    assert report.proof.ok, report.proof
    assert [one.name for one in report.charts[0].curves if one.style >= 0] == ["training", "held-out"]
    assert sum(report.where.parts) == pytest.approx(ended - began, rel=0.01)
    assert sum(report.where.parts) == pytest.approx(report.where.wall)
    own = sum(seconds for _, seconds in run.history("seconds"))
    assert own <= report.where.parts[STEPS] < report.where.allocated and report.where.parts[LOST] > 0
    board = EventAccumulator(str(run.path / "tensorboard")).Reload()
    curve = board.Scalars("loss/train")
    assert [event.step for event in curve] == list(range(1, 61))
    assert [event.value for event in curve] == pytest.approx([loss for _, loss in run.history("loss")])
    assert [event.step for event in board.Scalars("loss/held-out")] == [16, 32, 48, 60]
    assert {name.partition("/")[0] for name in board.Tags()["scalars"]} == {"loss", "optimizer", "speed", "memory"}

    # Whatever goes wrong with it, the run goes on.
    said: list[str] = []
    (run.path / "report.html").unlink()
    (run.path / "report.html").mkdir()
    at_the_end(run.path, said.append)
    assert said[0].startswith("outlast: [Errno 21] Is a directory")
