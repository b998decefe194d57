"""A stop in every phase of an attempt, which really runs when the signals come; twice, to one rank that is not always
the one that is busy. All ranks leave with 75, with one valid checkpoint of the agreed step; what follows is exact."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator

import pytest

from tests.trainer.data.samples import texts, write_rows
from tests.trainer.ranks import Run, Zygote, write_run
from tests.trainer.test_saved_state import verify
from tests.waiting import wait_until
from trainer.stop.stop import POLL_SECONDS

NewRun = Callable[..., Run]
SHAPE = {"train": {"steps": 12}, "checkpoint": {"every": 5}, "evaluation": {"every": 4}}
WORLD = 3


@pytest.fixture(scope="module")
def sha256(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of the run that nobody interrupts."""
    whole = write_run(tmp_path_factory.mktemp("whole") / "run", zygote, **SHAPE)
    write_rows(whole.path / "train.jsonl", texts(3000))
    assert whole.go(WORLD) == [0] * WORLD, whole.log()
    yield whole.done()["sha256"]


@pytest.fixture
def run(new_run: NewRun) -> Run:
    """Rows for three chunks of the preparation."""
    run = new_run("run", **SHAPE)
    write_rows(run.path / "train.jsonl", texts(3000))
    return run


def stop(run: Run, rank: int) -> None:
    for signum in (signal.SIGUSR1, signal.SIGTERM):
        run.signal(signum, rank=rank)


def one_valid_checkpoint(run: Run, step: int) -> bool:
    """Every checkpoint verifies, and the newest one alone holds the agreed step; of step 0 there is none."""
    for name in run.checkpoints():
        verify(run.path / "checkpoints" / name)
    return [name for name in run.checkpoints() if f"-{step:08d}-" in name] == run.checkpoints()[-1:]


@pytest.mark.parametrize(
    ("point", "busy", "signalled", "phases", "steps"),
    [
        ("interpreter", 0, 0, "preparation", {0}),
        ("interpreter", 2, 1, "preparation", {0}),
        ("group", 1, 0, "preparation", {0}),
        ("preparation", 0, 2, "preparation", {0}),
        ("preparation", 0, 0, "preparation", {0}),
        # All are busy: a rank that has built its model has cast its vote, and a signal after that waits for the next.
        ("model", "all", 0, "model", {0}),
        ("load", 1, 1, "resume", {0}),
        # A vote is cast a step ahead, and ranks that wait for the busy one may have begun the step after.
        ("first step", 2, 2, "first step, step", {1, 2, 3}),
        ("step", 1, 0, "step", {6, 7, 8}),
        ("evaluation", 2, 1, "evaluation", {4}),
        # Steps go on beside a save, until the next one is due.
        ("save", 0, 1, "step, save", {5, 6, 7, 8, 9, 10}),
    ],
)
def test_a_stop_while(
    run: Run, sha256: str, point: str, busy: int | str, signalled: int, phases: str, steps: set[int]
) -> None:
    run.start_with_fault(WORLD, point, busy, "wait")
    run.reaches_fault()
    stop(run, signalled)
    run.go_on()
    assert run.wait() == [75] * WORLD, run.log()
    (stopped,) = run.events("stop")
    assert stopped["phase"] in phases.split(", ") and stopped["step"] in steps, stopped
    assert one_valid_checkpoint(run, stopped["step"])
    if point == "save":
        assert [event["step"] for event in run.events("save")] == sorted({5, stopped["step"]})  # none of a state twice
    assert run.go(WORLD) == [0] * WORLD, run.log()
    assert run.done()["sha256"] == sha256


def test_a_rank_without_data_keeps_nobody_from_stopping(run: Run, sha256: str) -> None:
    run.start_with_fault(WORLD, "data", 2, "wait")
    run.reaches_fault()
    wait_until(lambda: len(run.events("step")) == 3, run.log())  # nothing is launched: all are told
    stop(run, 0)
    assert run.wait() == [75] * WORLD, run.log()  # the reading was never let go
    (stopped,) = run.events("stop")
    assert stopped["phase"] == "data" and stopped["step"] == 3
    assert one_valid_checkpoint(run, 3)
    assert run.go(WORLD) == [0] * WORLD, run.log()
    assert run.done()["sha256"] == sha256


def test_what_a_stop_broke_off_of_the_preparation_is_not_done_again(run: Run) -> None:
    run.start_with_fault(WORLD, "preparation", 0, "0.6")  # longer than the time between two votes
    run.reaches_fault()
    stop(run, 0)
    assert run.wait() == [75] * WORLD, run.log()
    assert list(run.path.parent.glob(".prepared/.part-*")) and not run.events("resume")
    assert run.go(WORLD) == [0] * WORLD, run.log()
    assert "the preparation goes on after row 2,048" in run.log()
    assert not list(run.path.parent.glob(".prepared/.*"))


def test_an_export_is_the_last_act_and_is_ended(run: Run, sha256: str) -> None:
    run.start_with_fault(WORLD, "export", 0, "wait")
    run.reaches_fault()
    stop(run, 0)
    run.go_on()
    assert run.wait() == [0] * WORLD, run.log()
    assert run.done()["sha256"] == sha256


def test_a_user_who_stops_the_preparation_ends_the_run(run: Run) -> None:
    run.start_with_fault(WORLD, "preparation", 0, "0.6")  # longer than the time between two looks at the file
    run.reaches_fault()
    (run.path / "stop").write_text("enough\n")
    assert run.wait() == [77] * WORLD, run.log()
    (stopped,) = run.events("stop")
    assert (stopped["reason"], stopped["phase"]) == ("stop file", "preparation")


# --- a save that cannot end in time ---------------------------------------------------------------------

RARE = {"train": {"steps": 100_000}, "checkpoint": {"every": 300}, "evaluation": {"every": 0}}


@pytest.mark.parametrize(("file", "text"), [("claims/0001.stop", "preemption\nuntil {}\n"), ("deadline", "{}\n")])
def test_a_save_that_cannot_end_before_the_kill_is_not_begun(new_run: NewRun, file: str, text: str) -> None:
    """Saves take two seconds, and one second is left when the last has ended; after a deadline Slurm gives 30 more."""
    run = new_run("run", **RARE)
    run.start_with_fault(2, "save", "all", "2")
    wait_until(lambda: run.events("save"), run.log())
    left = 1 if "stop" in file else 1 - 30
    (run.path / file).write_text(text.format(time.time() + left))
    assert run.wait() == [75, 75], run.log()
    skipped = run.events("save_skipped")
    assert len(skipped) == 1 and skipped[0]["seconds_left"] < 1 < 2 < skipped[0]["seconds_needed"]
    assert run.events("save")[-1]["step"] % 300 == 0 and "what was saved before counts" in run.log()


def test_a_run_whose_last_step_could_not_be_saved_is_not_done(new_run: NewRun) -> None:
    """The word comes during the last step, which no stop can stop any more."""
    run = new_run("run", train={"steps": 6}, checkpoint={"every": 3}, evaluation={"every": 0})
    run.start_with_fault(2, "step", "all", "wait")
    run.reaches_fault()
    (run.path / "claims" / "0001.stop").write_text(f"preemption\nuntil {time.time() - 60}\n")
    time.sleep(POLL_SECONDS)  # so that the next vote looks
    run.go_on()
    assert run.wait() == [75, 75], run.log()
    assert run.events("save_skipped")[0]["step"] == 6 and not (run.path / "DONE").exists()
    assert run.go(2) == [0, 0], run.log()
    assert run.done()["step"] == 6 and run.checkpoints()[-1].startswith("step-00000006")


def test_a_save_that_can_end_before_the_kill_is_made(new_run: NewRun) -> None:
    run = new_run("run", **RARE)
    run.start_with_fault(2, "save", "all", "0.2")
    wait_until(lambda: run.events("save"), run.log())
    (run.path / "claims" / "0001.stop").write_text(f"preemption\nuntil {time.time() + 120}\n")
    assert run.wait() == [75, 75], run.log()
    assert not run.events("save_skipped")
    assert run.checkpoints()[-1].startswith(f"step-{run.events('stop')[0]['step']:08d}")
