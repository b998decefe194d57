"""The benchmark of checkpoints: what it reads from its rounds, its limits, and its rows. No figure is judged here."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from benchmarks import processes
from benchmarks.checkpoint import loads, saves, starts, stop
from benchmarks.checkpoint.saves import ASYNC, DCP, EVERY, FOLLOWING, KEPT, LIMITS, OURS, SAVE, TRAINER, Cost, Saves
from benchmarks.processes import Unable
from benchmarks.rows import Row, verdict
from benchmarks.step.race import Racer, Ran, Round, Step

MEMCPY, RAW = 0.1, 1.0
"""Seconds that 1,200 bytes take here."""


def step(wall: float, cpu: float = 2.0, **values: float) -> Step:
    return Step(wall, cpu, {"forward": 0.1, "passed": 0.4, "adamw": 0.8, "stepped": 0.9}, values)


def a_round(save: float = 0.1, slower: float = 0.01, **values: float) -> list[Step]:
    """Of steps of a second, the first of which saves."""
    usual = [step(1.0)] * (EVERY - 2 - FOLLOWING)
    return [step(1 + save, 2.25, **values), *[step(1 + slower, 2.125)] * FOLLOWING, *usual]


def saved(stall: float = 0.1, slower: float = 0.04, durable: float = 1.0, size: int = 1200) -> Saves:
    return Saves([Cost(stall, slower, usual=1.0, cpu=0.5)] * 3, 0.5, [durable] * 2, size, threads=2, staged=stall / 2)


def found(ours: Saves) -> dict[str, Saves]:
    others = saved(0.4, 0.2, 2.0)
    return {OURS: ours, ASYNC: others, KEPT: others, DCP: others, SAVE: others, TRAINER: others}


def rows(ours: Saves, without: str = "") -> list[Row]:
    heat = saves.heats(quick=True)[0]
    there = {name: one for name, one in found(ours).items() if name != without}
    words = {without: "no matching distribution"} if without else {}
    return list(saves.rows(heat, there, words, {"memcpy": MEMCPY, "durable": RAW}, parameters=100))


def row(given: list[Row], name: str, peer: str = "") -> Row:
    [one] = [one for one in given if one.name == f"10M: {name}" and one.peer_name == peer]
    return one


# --- rounds ---------------------------------------------------------------------------------------------------


def test_a_round_counts_from_the_step_that_saves() -> None:
    after_the_pause = saves.WARM + 1
    assert (after_the_pause + 1) % EVERY == 0 and saves.WARM > EVERY  # the first save of all is before
    assert EVERY - 2 - FOLLOWING >= 3  # of which the median is the usual step


def test_a_save_costs_what_its_step_and_the_next_ones_exceed_the_usual_one() -> None:
    cost = Cost.of(a_round(save=0.5, slower=0.01, fsync=0.2))
    assert (cost.stall, cost.slower, cost.usual) == (pytest.approx(0.3), pytest.approx(0.04), 1.0)
    assert cost.cpu == 0.25 + FOLLOWING * 0.125


def test_the_first_save_is_apart(tmp_path: Path) -> None:
    warm = [step(1.0)] * (EVERY - 1) + [step(3.0, durable=9.0)] + [step(1.0)] * (EVERY - 2)
    ran = Ran(warm + 2 * a_round(durable=2.0), [Round(0.0, a_round(durable=2.0))] * 2)
    (tmp_path / "saved" / "20").mkdir(parents=True)
    (tmp_path / "saved" / "20" / "state.pt").write_bytes(b"." * 1200)
    came = saves.told(tmp_path, DCP, ran, 2)
    assert (came.first, came.durable, came.size, came.rate) == (pytest.approx(2.0), [2.0, 2.0], 1200, 600 / 1e9)
    with pytest.raises(Unable, match="no second save"):
        saves.told(tmp_path, OURS, ran, 2)
    events = [{"event": "save", "seconds": 5, "stall": 3}, {"event": "save", "seconds": 4, "stall": 1}]
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    ours = saves.told(tmp_path, OURS, ran, 2)
    assert (ours.durable, ours.staged) == ([4], 1)


def test_limits_are_read_where_the_saves_are() -> None:
    ran = Ran([], [Round(0.0, a_round(memcpy=seconds, durable=10 * seconds)) for seconds in (1.0, 2.0, 9.0)])
    assert saves.limits(ran) == {"memcpy": 2.0, "durable": 20.0}


# --- rows -----------------------------------------------------------------------------------------------------


def test_every_goal_of_a_save_has_its_row() -> None:
    given = rows(saved())
    judged = {(one.name.removeprefix("10M: "), one.peer_name or one.limit_name): one.met for one in given if one.goal}
    assert judged == {
        ("stall of a save", "memcpy"): True,
        ("stall of a save", ASYNC): True,
        ("lost to a save in all", ASYNC): True,
        (f"the {FOLLOWING} steps after a save slower, in sum", ASYNC): True,
        ("durable", "raw write"): True,
        ("durable", DCP): True,
        ("durable", ASYNC): True,
        ("bytes of a parameter", "three in fp32"): True,
    }
    for peer in (SAVE, TRAINER, DCP, KEPT):
        assert verdict(row(given, "stall of a save", peer)) == ""


def test_a_missed_goal_of_a_save_stands_with_what_was_measured() -> None:
    given = rows(saved(0.2, 0.2, 1.5, 1300))
    assert [one.name for one in given if one.met] == []
    assert row(given, "stall of a save").cause.startswith("measured: 100 ms of 200 are the staging")
    assert "0.5 s of a core" in row(given, f"the {FOLLOWING} steps after a save slower, in sum", ASYNC).cause
    assert row(given, "durable").cause.startswith("measured: 1.5 s, 0.1 of them staging; 1.08 s raw, alone; a save")


def test_a_peer_that_did_not_save_says_why() -> None:
    for peer in (ASYNC, TRAINER):
        one = row(rows(saved(), without=peer), "stall of a save", peer)
        assert (verdict(one), one.cause) == ("missing", "no matching distribution")


def test_a_stop_is_sooner_by_seconds() -> None:
    assert stop.row([0.5, 0.6, 0.7], [3.7, 3.7, 3.9], "").met is True
    late = stop.row([0.5, 0.9, 1.0], [3.7, 3.7, 3.9], "")
    assert (late.met, late.cause) == (
        False,
        "measured: 2.80 s sooner; ours from 0.50 to 1.00 s, theirs from 3.70 to 3.90",
    )
    assert (verdict(stop.row([0.5], [], "no matching distribution"))) == "missing"


def test_a_start_is_judged_by_its_seconds_and_calls() -> None:
    seconds = {starts.OURS: 2.0, starts.PEER: 4.0, starts.TORCH: 1.2}
    ours, peer = starts.time_rows(seconds, {starts.OURS: 0.2}, "")
    assert (ours.met, peer.ratio, verdict(peer)) == (True, 2, "")
    del seconds[starts.PEER]
    assert verdict(list(starts.time_rows(seconds, {starts.OURS: 0.2}, "none"))[1]) == "missing"
    [calls] = starts.calls_rows({starts.OURS: 30_001, starts.PEER: 60_002}, 20_000, "")
    assert (calls.met, calls.ratio, calls.cause) == (False, 2, "measured: 20,000 are torch's import")
    [calls] = starts.calls_rows({}, 0, "strace is not installed")
    assert (verdict(calls), calls.cause) == ("missing", "strace is not installed")


def test_a_load_is_judged_by_the_raw_read() -> None:
    assert loads.row("resume", 10**9, 1.25, 1.0, 0.1).met is True
    slow = loads.row("resume", 10**9, 2.0, 1.0, 0.1)
    assert (slow.met, slow.outlast, slow.limit) == (False, 0.5, 1.0)
    assert slow.cause == "measured, s: 2 for all; 1 to read as much, 0.1 to hash it in memory"


# --- machinery ------------------------------------------------------------------------------------------------


def test_each_reader_reads_its_share(tmp_path: Path) -> None:
    for rank in range(2):
        (tmp_path / f"rank-{rank:04d}.safetensors").write_bytes(os.urandom(1 << 20))
    (tmp_path / "settings.json").write_text(json.dumps({"read": str(tmp_path)}))
    argv = [sys.executable, "-m", "benchmarks.checkpoint.limits", str(tmp_path)]
    with Racer(LIMITS, argv, tmp_path / "log", world=2) as reader:
        reader.ready()
        for prepare in loads.STATES.values():
            prepare(tmp_path)
            [told] = reader.run(1)
            assert 0 < told.values["read"] <= told.wall
        reader.leave()


def test_calls_are_the_sum_that_strace_writes() -> None:
    summary = "% time ...\n 60.00 0.1 2 900 100 openat\n------\n100.00    0.2           2      1300       150 total\n"
    assert processes.traced(summary) == 1300
    assert processes.tracer("out")[-2:] == ["-o", "out"]
