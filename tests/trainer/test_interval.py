"""When a save is due: by steps, by a time, by what saves and interruptions cost."""

from __future__ import annotations

import random
import signal
import statistics
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable import append_line
from tests.trainer.ranks import Run
from tests.waiting import wait_until
from trainer.checkpoint.interval import BUSY, PRIOR, Interval, Rhythm, duration, interruptions
from trainer.records import events
from trainer.schema import Checkpoint
from trainer.stop.lead import LeadTime

HOUR = 3600.0


def told(epoch: int, event: str, step: int, **values: float) -> dict[str, Any]:
    return {"epoch": epoch, "event": event, "step": step, **values}


def steps(epoch: int, first: int, last: int) -> list[dict[str, Any]]:
    """Of five seconds each."""
    return [told(epoch, "step", step, seconds=4.5, data_wait_seconds=0.5) for step in range(first, last + 1)]


# --- the interval ---------------------------------------------------------------------------------------


def test_it_says_why() -> None:
    interval = Interval(stall=1.9, measured=True, written=20.0, step=5.0, lost=2, trained=12 * HOUR, nodes=2)
    assert interval.between == pytest.approx(8 * HOUR)
    assert str(interval) == (
        "saves every 66 steps (6 min): a save costs 1.9 s of training, an interruption that loses work comes every 8 h "
        "(prior 24 h a node; 2 seen in 12 h)"
    )
    slow = Interval(stall=0.01, measured=True, written=600.0, step=5.0, lost=0, trained=0.0, nodes=1)
    assert str(slow).startswith("saves every 480 steps (40 min): a save costs 0.01 s of training, ")
    assert str(slow).endswith(
        "(prior 24 h a node; 0 seen in 0 s); it is written in 10 min, which is to be a part of 4 at most"
    )
    assert "a save is thought to cost 0.01 s" in str(Interval(0.01, False, 0.0, 5.0, 0, 0.0, 1))


COSTS = st.floats(0.001, 100)


@given(COSTS, st.floats(0, 100), st.floats(0.01, 100), st.integers(0, 20), st.floats(0, 1e7), st.integers(1, 100))
def test_no_other_interval_costs_less(
    stall: float, written: float, step: float, lost: int, trained: float, nodes: int
) -> None:
    interval = Interval(stall, True, written, step, lost, trained, nodes)

    def cost(seconds: float) -> float:
        """The share of the time that is lost: to saves, and of each interruption half an interval."""
        return stall / seconds + seconds / 2 / interval.between

    chosen = interval.steps * step
    for factor in (0.5, 0.9, 1.1, 2.0):
        other = max(interval.least * factor, BUSY * written, step)
        assert cost(interval.least) <= cost(other) * (1 + 1e-9)
    assert chosen >= BUSY * written - step / 2 and interval.steps >= 1
    assert chosen <= max(interval.least, BUSY * written) + step


@given(COSTS, st.integers(0, 20), st.floats(0, 1e7), st.integers(1, 100))
def test_more_interruptions_mean_more_saves(stall: float, lost: int, trained: float, nodes: int) -> None:
    def least(lost: int, trained: float, nodes: int) -> float:
        return Interval(stall, True, 0.0, 1.0, lost, trained, nodes).least

    usual = least(lost, trained, nodes)
    assert least(lost + 1, trained, nodes) < usual <= least(lost, trained + HOUR, nodes)
    assert least(lost, trained, nodes + 1) < usual


def test_a_young_run_goes_by_the_prior_and_an_old_one_by_what_it_saw() -> None:
    assert Interval(1.0, True, 1.0, 1.0, 0, 0.0, 4).between == PRIOR / 4
    assert Interval(1.0, True, 1.0, 1.0, 100, 1000 * HOUR, 4).between == pytest.approx(10 * HOUR, rel=0.02)


def lost_share(cost: float, between: float, every: Callable[[int, float], float], seed: int) -> float:
    """The share of the time that saves and work that is done again take, in a run of a day's work that is struck at random
    (seconds). `every`: the interval, from the interruptions and the training that were seen."""
    chance = random.Random(seed)
    now = done = trained = lost_time = 0.0
    lost, struck = 0, chance.expovariate(1 / between)
    while done < 24 * HOUR:
        interval = every(lost, trained)
        if now + interval + cost < struck:
            now, done, trained, lost_time = now + interval + cost, done + interval, trained + interval, lost_time + cost
        else:
            lost, trained, lost_time = lost + 1, trained + struck - now, lost_time + struck - now
            now, struck = struck, struck + chance.expovariate(1 / between)
    return lost_time / now


@pytest.mark.parametrize("cost", [0.5, 2.0, 30.0])
@pytest.mark.parametrize("hours", [1, 6, 24])
def test_what_a_run_has_seen_does_nearly_as_well_as_to_know_the_rate(cost: float, hours: int) -> None:
    between = hours * HOUR
    known = Interval(cost, True, 0.0, 1.0, 0, between, 1000).least

    def auto(lost: int, trained: float) -> float:
        return float(Interval(cost, True, 0.0, 1.0, lost, trained, 2).steps)

    ours, best = (
        statistics.fmean(lost_share(cost, between, every, seed) for seed in range(30))
        for every in (auto, lambda *_: known)
    )
    assert ours < 1.25 * best


# --- what happened --------------------------------------------------------------------------------------


def test_what_loses_no_work_is_no_interruption() -> None:
    before = [told(1, "resume", 0), *steps(1, 1, 40), told(1, "stop", 40), told(1, "save", 40)]
    assert interruptions(before) == (0, 200.0)
    saved = [*before, told(2, "resume", 40), *steps(2, 41, 60)]
    assert interruptions(saved) == (0, 300.0)  # the last one may still be under way
    killed = [*saved, told(3, "resume", 40)]
    assert interruptions(killed) == (1, 300.0)
    again = [*killed, told(4, "resume", 40), *steps(4, 41, 50), told(6, "resume", 40)]  # 3 and 5 had not done anything
    assert interruptions(again) == (2, 350.0)
    assert interruptions([]) == (0, 0.0)


# --- the rhythm -----------------------------------------------------------------------------------------


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Attempt:
    """The third one, of a run in a folder."""

    def __init__(self, folder: Path, before: list[dict[str, Any]]) -> None:
        for event in before:
            append_line(folder / events.NAME, event)
        self.run_dir, self.clock, self.said = folder, Clock(), list[str]()
        self.lead = LeadTime(before)
        self.lead.expect_checkpoint(2_000_000_000, ranks=2)

    def rhythm(self, every: int | str, step: int, cut_short: bool = False, leads: bool = True) -> Rhythm:
        runtime = SimpleNamespace(leads=leads, nodes=1, epoch=3, cut_short=cut_short, run_dir=self.run_dir)
        settings = Checkpoint(every=every)
        return Rhythm(settings, runtime, step, self.lead, self.tell, self.clock, longest=3600)  # type: ignore[arg-type]

    def tell(self, event: str, step: int, text: str, **values: Any) -> None:
        self.said.append(text)


CUT = [told(2, "resume", 10), *steps(2, 11, 14)]


@pytest.mark.parametrize("every", ["auto", "30m"])
def test_a_save_that_hangs_is_waited_for_at_last(tmp_path: Path, every: str) -> None:
    """Beside the steps no watchdog sees it: without another one due, a dead disk would be noticed at the deadline."""
    attempt = Attempt(tmp_path, CUT)
    rhythm = attempt.rhythm(every, 14)
    rhythm.saves(14)
    attempt.lead.saving = True
    attempt.clock.now += 3600
    assert not rhythm.due(20) and not attempt.said
    attempt.clock.now += 1
    assert rhythm.due(20)
    assert attempt.said == ["the checkpoint of step 14 is not written after 60 min: the training waits for it"]


def test_steps_count_from_the_run_s_first_one(tmp_path: Path) -> None:
    attempt = Attempt(tmp_path, CUT)
    assert [step for step in range(11, 61) if attempt.rhythm(20, 10).due(step)] == [20, 40, 60]
    assert [step for step in range(11, 61) if attempt.rhythm(20, 10, cut_short=True).due(step)] == [12, 20, 40, 60]
    assert attempt.said == ["the last attempt was cut before it had saved: this one saves after step 12"] * 50
    assert not any(attempt.rhythm(1, 10, cut_short=True, leads=False).due(step) for step in range(11, 61))


def test_a_time_counts_from_the_last_save(tmp_path: Path) -> None:
    attempt, due = Attempt(tmp_path, [*CUT, *steps(2, 15, 16)]), []
    every = attempt.rhythm("30m", 10, cut_short=True)
    for step in range(11, 1000):
        is_due = every.due(step)
        attempt.clock.now += 5.0  # the step
        if is_due:
            every.saves(step)
            due.append(step)
    assert due == [13, 373, 733]


def test_auto_waits_until_it_knows_a_step_and_says_what_it_takes(tmp_path: Path) -> None:
    attempt = Attempt(tmp_path, [])
    every, lead, said = attempt.rhythm("auto", 0), attempt.lead, attempt.said
    assert not any(every.due(step) for step in range(1, 10_000)) and not said
    for _ in range(5):
        lead.saw_step(4.5)
    due = [step for step in range(1, 500) if every.due(step)]
    assert due[0] == round((2 * 1.0 * PRIOR) ** 0.5 / 4.5) == 92  # 1 GB a rank: one second is thought
    assert said == [
        "saves every 92 steps (7 min): a save is thought to cost 1 s of training, an interruption that loses work comes "
        "every 24 h (prior 24 h a node; 0 seen in 0 s)"
    ]
    every.saves(92)
    lead.saw_save(seconds=8.0, stall=0.25)
    assert not every.due(92 + 45) and every.due(92 + 46)
    assert len(said) == 2 and "a save costs 0.25 s of training" in said[1]
    lead.saw_save(seconds=8.0, stall=0.25)
    attempt.clock.now += HOUR
    every.due(93)
    assert len(said) == 2  # a small change is not news


def test_auto_takes_what_earlier_attempts_have_seen(tmp_path: Path) -> None:
    """Not what an older version saved, which waited for all of it, nor a save that had nothing to go on beside it."""
    kinds = [{"stall": 2.0}, {"stall": 3.0}, {}, {"stall": 12.0, "leaving": True}]
    saves = [told(1, "save", 40, seconds=12.0, **kind) for kind in kinds]
    before = [told(1, "resume", 0), *steps(1, 1, 100), *saves, told(2, "resume", 40), *steps(2, 41, 50)]
    attempt = Attempt(tmp_path, before)
    attempt.rhythm("auto", 50).due(51)
    (said,) = attempt.said
    assert "a save costs 2.5 s of training" in said
    assert said.endswith("comes every 12 h (prior 24 h a node; 1 seen in 9 min)")
    attempt.rhythm("auto", 40).due(51)  # the last one has lost its ten steps
    assert attempt.said[1].endswith("comes every 8 h (prior 24 h a node; 2 seen in 9 min)")


@pytest.mark.parametrize(
    ("every", "seconds"), [("30m", 1800), ("2h", 7200), ("90s", 90), ("1d", 86400), ("auto", None), (200, None)]
)
def test_a_time_is_written_with_its_unit(every: int | str, seconds: int | None) -> None:
    assert Checkpoint(every=every).seconds == seconds


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.25, "0.25 s"), (90, "90 s"), (2040, "34 min"), (24 * HOUR, "24 h"), (72 * HOUR, "3 d")]
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words


# --- in a run -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", ["auto", "1s"])
def test_all_ranks_save_at_the_step_that_rank_0_has_chosen(new_run: Callable[..., Run], every: str) -> None:
    run = new_run("run", train={"steps": 100_000}, checkpoint={"every": every}, evaluation={"every": 0})
    module = ["tests.trainer.with_a_prior", str(run.path / "config.yaml")]

    def saves(epoch: int) -> list[int]:
        return [event["step"] for event in run.events("save") if event["epoch"] == epoch]

    run.start(2, argv=module)
    wait_until(lambda: len(saves(1)) >= 3, run.log())
    run.signal(signal.SIGUSR1, rank=1)
    assert run.wait() == [75, 75], run.log()
    assert saves(1)[-1] == run.events("stop")[0]["step"]
    run.start(2, argv=module)
    wait_until(lambda: len(saves(2)) >= 2, run.log())
    run.reaches(saves(2)[-1] + 2)
    assert run.kill() == [-9, -9]
    run.start(2, argv=module)
    wait_until(lambda: len(saves(3)) >= 1, run.log())
    run.kill()
    resumed = [event["step"] for event in run.events("resume")]
    assert resumed[:2] == [0, saves(1)[-1]] and resumed[2] >= saves(2)[1]
    if every == "auto":
        assert "saves every " in run.log() and " of training, an interruption that loses work comes every " in run.log()
        reached = max(event["step"] for event in run.events("step") if event["epoch"] == 2)
        assert f"(prior 10 s a node; {int(reached > resumed[2])} seen in " in run.log()  # the stop was none
