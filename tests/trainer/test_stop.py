"""The agreed stop: any source, any moment, any rank: all ranks at the same step, one valid checkpoint."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.trainer.ranks import Run
from tests.trainer.test_saved_state import verify
from tests.waiting import wait_until
from trainer.stop.lead import LeadTime, percentile_95
from trainer.stop.stop import POLL_SECONDS

ROOT = Path(__file__).parent.parent.parent
NewRun = Callable[..., Run]
LONG = {"steps": 100_000}
STOPS = int(os.environ.get("OUTLAST_TEST_STOPS", 6))
WALLTIME = float(os.environ.get("OUTLAST_TEST_WALLTIME", 18))  # seconds


def test_a_signal_to_one_random_rank_at_random_times(new_run: NewRun) -> None:
    """From the first instruction on: handlers that do not stand yet, model build, first step, evaluation, save."""
    run = new_run("run", train=LONG, evaluation={"every": 3}, checkpoint={"every": 4})
    chance = random.Random(7)
    step = 0
    for attempt in range(1, STOPS + 1):
        run.start(4)
        if attempt % 3 == 0:  # else on a busy machine no attempt would come so far
            run.reaches(step + 5)
        time.sleep(chance.uniform(0, 2.5))  # the moment is what is tested, nothing waits for it
        run.signal(chance.choice([signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM]), rank=chance.randrange(4))
        assert run.wait() == [75] * 4, run.log()
        (stop,) = [e for e in run.events("stop") if e["epoch"] == attempt]
        assert stop["step"] >= step
        step = stop["step"]
        if step:  # the newest checkpoint holds exactly this step
            newest = run.checkpoints()[-1]
            assert newest.startswith(f"step-{step:08d}-")
            verify(run.path / "checkpoints" / newest)
    phases = Counter(e["phase"] for e in run.events("stop"))
    print(f"{STOPS} stops, {step} steps: {dict(phases)}")
    assert step > STOPS and (STOPS < 50 or len(phases) > 3), phases  # of few the moments may be alike


def test_two_signals_in_short_order_are_one_stop(new_run: NewRun) -> None:
    run = new_run("run", train=LONG)
    run.start(2)
    run.reaches(2)
    for signum in (signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM):
        run.signal(signum)
    assert run.wait() == [75, 75], run.log()
    assert len(run.events("stop")) == 1


@pytest.mark.parametrize(
    ("file", "code", "reason"),
    [("stop", 77, "stop file"), ("claims/0001.stop", 75, "the nodes are wanted")],
)
def test_a_word_in_a_file(new_run: NewRun, file: str, code: int, reason: str) -> None:
    run = new_run("run", train=LONG)
    run.start(2)
    run.reaches(2)
    (run.path / file).write_text("the nodes are wanted\n")
    assert run.wait() == [code, code], run.log()
    assert run.events("stop")[0]["reason"] == reason


def test_ctrl_c_is_the_users_word(new_run: NewRun) -> None:
    run = new_run("run", train=LONG)
    run.start(2)
    run.reaches(2)
    run.signal(signal.SIGINT)
    assert run.wait() == [77, 77]


def test_another_attempts_word_is_not_obeyed(new_run: NewRun) -> None:
    run = new_run("run", train={"steps": 5})
    run.start(2)
    (run.path / "claims" / "0002.stop").write_text("for another\n")
    assert run.wait() == [0, 0], run.log()


def test_of_a_walltime_of_five_minutes_95_percent_are_trained(new_run: NewRun) -> None:
    """From the first step on, and a deadline needs no signal. What the stop leaves unused is seconds, whatever the
    walltime: measured in a shorter one, by the lead that the run has measured itself."""
    run = new_run("run", train=LONG, checkpoint={"every": 100}, evaluation={"every": 0})
    deadline = time.time() + WALLTIME
    run.start(4, OUTLAST_DEADLINE=str(deadline))
    assert run.wait() == [75] * 4, run.log()
    assert run.events("stop")[0]["reason"] == "deadline" and run.events("save")[-1]["time"] < deadline
    steps = run.events("step")
    lead = LeadTime(run.events("step") + run.events("save"))
    started, unused = steps[0]["time"] - (deadline - WALLTIME), deadline - steps[-1]["time"]
    share = 1 - unused / (300 - started)
    print(f"{len(steps)} steps, {unused:.1f} s of the walltime unused: {share:.1%} of five minutes trained")
    # A stop too early would leave more: by then its lead may have been a slow step longer.
    assert unused < lead.seconds() + 3 * max(step["seconds"] for step in steps) + 1 and share > 0.95


def test_a_deadline_that_moves_is_read(new_run: NewRun) -> None:
    run = new_run("run", train=LONG)
    run.start(2, OUTLAST_DEADLINE=str(time.time() + 3600))
    run.reaches(2)
    (run.path / "deadline").write_text(f"{time.time() + 1}\n")
    assert run.wait() == [75, 75]


TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]


@pytest.mark.parametrize("agent", [[], pytest.param(TORCHRUN, marks=pytest.mark.nightly)])
def test_without_the_launcher_it_goes_on_after_a_job_whose_time_is_over(new_run: NewRun, agent: list[str]) -> None:
    """What a supervisor wrote of its job's end is nothing to the attempt that no supervisor has started."""
    world = 2 if agent else 1
    run = new_run("run", train={"steps": 30}, evaluation={"every": 0}, export=False, report=False)
    run.start_with_fault(world, "step", "all", "wait")
    run.reaches_fault()
    (run.path / "deadline").write_text(f"{time.time() - 1}\n")
    time.sleep(POLL_SECONDS)  # so that the next vote looks
    run.go_on()
    assert run.wait() == [75] * world, run.log()
    argv = [sys.executable, "-m", *agent, "trainer", str(run.path / "config.yaml")]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(run.events("stop")) == 1 and [step for (step,) in run.history()] == list(range(1, 31))


@pytest.mark.parametrize(("rank", "seconds", "when"), [(1, 3600, "start"), (1, -3600, "start"), (0, 3600, "later")])
def test_a_clock_that_is_an_hour_wrong_has_no_effect(new_run: NewRun, rank: int, seconds: int, when: str) -> None:
    """Rank 0's clock, which is the batch host's, decides; and it may be set while the run goes on."""
    run = new_run("run", train={"steps": 40})
    (run.path / "deadline").write_text(f"{time.time() + 600}\n")
    clock = ["tests.trainer.with_another_clock", str(rank), str(seconds), when, str(run.path / "config.yaml")]
    assert run.go(2, clock) == [0, 0], run.log()
    assert not run.events("stop") and len(run.events("step")) == 40
    shift = run.events("step")[-1]["time"] - run.events("step")[0]["time"]
    assert (shift > 3000) == (rank == 0)  # the clock really was another one


def test_a_stop_in_an_evaluation_breaks_it_off_and_it_is_made_after_the_resume(new_run: NewRun) -> None:
    shape = {"train": {"steps": 12}, "evaluation": {"every": 6, "batches": 2}}
    whole, run = new_run("whole", **shape), new_run("run", **shape)
    assert whole.go(2) == [0, 0]
    # Held-out data for minutes: the stop can only fall into the evaluation.
    config = run.path / "config.yaml"
    rows = run.path / "evaluation.jsonl"
    rows.write_text(rows.read_text() * 2000)
    config.write_text(config.read_text().replace("batches: 2", "batches: 100000"))
    run.start(2)
    run.reaches(6)
    run.signal(signal.SIGTERM, rank=1)
    assert run.wait() == [75, 75], run.log()
    assert run.events("stop")[0]["step"] == 6 and not run.events("evaluation")
    config.write_text(config.read_text().replace("batches: 100000", "batches: 2"))
    assert run.go(2) == [0, 0], run.log()
    assert [e["step"] for e in run.events("evaluation")] == [6, 12]
    assert run.done()["sha256"] == whole.done()["sha256"]


def test_a_crash_of_one_rank_does_not_end_with_success(new_run: NewRun) -> None:
    run = new_run("run", train=LONG)
    run.start(3)
    run.reaches(2)
    run.signal(signal.SIGKILL, rank=1)
    codes = run.wait()
    assert codes[1] == -9 and codes[0] == codes[2] == 1


def test_a_run_that_is_done_is_left_alone(new_run: NewRun) -> None:
    run = new_run("run", train={"steps": 3})
    assert run.go(2) == [0, 0]
    before = (run.path / "events.jsonl").read_text()
    assert run.go(2) == [0, 0]
    assert (run.path / "events.jsonl").read_text() == before


def test_a_kill_between_the_last_save_and_done_is_finished(new_run: NewRun) -> None:
    run = new_run("run", train={"steps": 3})
    assert run.go(2) == [0, 0]
    sha = run.done()["sha256"]
    (run.path / "DONE").unlink()
    assert run.go(2) == [0, 0], run.log()
    assert run.done()["sha256"] == sha and run.events("resume")[-1]["step"] == 3


def test_lead_time_is_measured() -> None:
    steps = [{"event": "step", "seconds": 1.0}] * 95 + [{"event": "step", "seconds": 9.0}] * 5
    first = LeadTime([])
    first.expect_checkpoint(2_000_000_000)
    assert first.seconds() == pytest.approx(12)  # estimated from the size
    later = LeadTime([*steps, {"event": "save", "seconds": 4.0}])
    later.expect_checkpoint(2_000_000_000)
    assert later.seconds() == pytest.approx(2 * 9 + 4 + 2)
    on_gpu = LeadTime([*steps, {"event": "save", "seconds": 4.0}], on_gpu=True)
    assert on_gpu.seconds() == pytest.approx(3 * 9 + 4 + 2)
    on_nodes = LeadTime([])
    on_nodes.expect_checkpoint(840_000_000_000, ranks=64, nodes=8)  # 70 B
    assert on_nodes.seconds() == pytest.approx(840e9 / 200e6 / 8 + 2)
    on_nodes.allot(600)
    on_nodes.allot(20)  # that it has gone on since changes nothing
    assert on_nodes.seconds() == pytest.approx(300 + 2)  # else a job of ten minutes would stop before its first step
    later.allot(1)
    later.saving = True  # that one first, and then the stop's own
    assert later.seconds() == pytest.approx(2 * 9 + 2 * 4 + 2)
    assert percentile_95([]) == 0


def test_alone_without_any_launcher(new_run: NewRun) -> None:
    """`python -m trainer config.yaml` on a laptop: it claims for itself."""
    run = new_run("run", train=LONG)
    pid = run.zygote.fork(["trainer", str(run.path / "config.yaml")], {}, run.path / "attempt-1-rank-0.log")
    run.pids = [pid]
    wait_until(lambda: run.events("step"), run.log())
    run.signal(signal.SIGTERM)
    assert run.wait() == [75]
    assert (run.path / "claims" / "0001.json").exists()
