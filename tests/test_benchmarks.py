"""What `make bench` writes: its rows, its table, and what it keeps. No figure is judged here."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import __main__ as bench
from benchmarks import machine, page, peers
from benchmarks.goodput import account, model, runs
from benchmarks.goodput import measure as goodput
from benchmarks.rows import OPEN, Row, table, verdict

ROOT = Path(__file__).parent.parent
RESULTS = sorted(bench.RESULTS.glob("????-??-??.json"))
TIME = Row("--help, time", "ms", 50.0, "torchx run --help", 150.0, cause="settings 33 ms")


def lines(*rows: Row) -> list[str]:
    return table(rows).splitlines()


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_a_race_is_met_by_the_ratio_to_the_peer() -> None:
    assert (TIME.at_least(3).ratio, TIME.at_least(3).met) == (3.0, True)
    assert TIME.at_least(3.1).met is False
    assert replace(TIME, peer=None).at_least(3).met is None
    assert replace(TIME, outlast=None).at_least(3).ratio is None


def test_a_line_of_the_table() -> None:
    head, rule, line = lines(replace(TIME.at_least(2.5), limit_name="bare Python", limit=1234.6))
    assert cells(head) == ["name", "outlast", "peer", "limit", "ratio", "goal", "met"]
    assert cells(line)[:4] == ["--help, time", "50.0 ms", "torchx run --help 150 ms", "bare Python 1,235 ms"]
    assert cells(line)[4:] == ["3.00x", "at least 2.5x", "met"]
    assert len(head) == len(rule) == len(line)


def test_a_count_stands_whole_and_zero_is_a_figure() -> None:
    assert cells(lines(Row("calls", "", 1290))[2])[1] == "1,290"
    assert cells(lines(Row("modules", "", 0, goal="no torch", met=True))[2])[1:] == ["0", "", "", "", "no torch", "met"]


def test_what_is_missed_or_missing_stands_with_its_cause() -> None:
    missed = TIME.at_least(20)
    absent = replace(TIME, peer_name="torchrun", peer=None, cause="no matching distribution").at_least(1)
    unknown = replace(missed, name="dry run, time", cause="")
    shown = lines(missed, absent, unknown, replace(missed, name="peak memory"), TIME.at_least(2))
    assert [cells(line)[-1] for line in shown[2:7]] == ["MISSED", "missing", "MISSED", "MISSED", "met"]
    assert shown[8:] == [
        "- --help, time against torchx run --help; peak memory against torchx run --help: settings 33 ms",
        "- --help, time against torchrun: no matching distribution",
        "- dry run, time against torchx run --help: cause not found yet",
    ]


Run = Callable[..., tuple[list[bool], dict[str, Any]]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Benchmarks that are one; hands back how it was measured each time, and today's record of it."""
    measured: list[bool] = []

    def measure(quick: bool) -> list[Row]:
        measured.append(quick)
        return [TIME.at_least(2), TIME.at_least(20)]

    here = next(iter(json.loads(RESULTS[-1].read_text()).values()))["machine"]
    monkeypatch.setattr(bench, "BENCHMARKS", {"waiting": measure})
    monkeypatch.setattr(machine, "describe", lambda: here)
    monkeypatch.setattr(machine, "versions", lambda: {"outlast": "abc"})

    def once(*argv: str) -> tuple[list[bool], dict[str, Any]]:
        assert bench.main(list(argv), tmp_path) == 0
        [file] = tmp_path.glob("*.json")
        assert "| --help, time |" in file.with_suffix(".md").read_text()
        return measured, json.loads(file.read_text())["waiting"]

    return once


def test_a_record_holds_rows_with_causes_where_one_is_asked_for(run: Run) -> None:
    _, block = run("--only", "waiting")
    assert [Row(**row) for row in block["rows"]] == [replace(TIME.at_least(2), cause=""), TIME.at_least(20)]
    assert block["versions"] == {"outlast": "abc"}


def test_keep_repeats_only_what_does_not_stand(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("--quick")[0] == [True]
    assert run("--quick", "--keep")[0] == [True]
    assert run("--keep")[0] == [True, False]  # a quick figure is no full one
    assert run("--quick", "--keep")[0] == [True, False]  # a full one is a quick one
    assert run()[0] == [True, False, False]
    monkeypatch.setattr(machine, "versions", lambda: {"outlast": "def+changes"})
    assert run("--keep")[0] == [True, False, False, False]
    assert run("--keep")[0] == [True, False, False, False, False]  # changes without a commit have no version


def test_an_unknown_name_is_one_line_and_78() -> None:
    argv = [sys.executable, "-m", "benchmarks", "--only", "comand_line"]
    shown = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
    assert (shown.returncode, shown.stdout) == (78, "")
    known = ", ".join(bench.BENCHMARKS)
    assert shown.stderr == f"benchmarks: --only comand_line: there is no such benchmark; there are: {known}\n"


@pytest.mark.parametrize("file", RESULTS, ids=lambda path: path.stem)
def test_the_results_that_are_kept_can_be_read(file: Path) -> None:
    record = json.loads(file.read_text())
    assert record.keys() <= bench.BENCHMARKS.keys()
    for name, block in record.items():
        assert all(row.keys() == {field.name for field in fields(Row)} for row in block["rows"])
        assert bench.section(name, block) in file.with_suffix(".md").read_text()


def test_every_peer_is_pinned() -> None:
    pinned = {line.split("==")[0] for line in peers.PINS.read_text().splitlines() if "==" in line}
    assert {peers.name_of(requirement) for requirement in peers.requirements()} <= pinned
    assert peers.name_of(peers.requirements()[0]) == "torch"  # first, or another's open range takes the newest CUDA


# --- goodput --------------------------------------------------------------------------------------------------


def preempted() -> account.Run:
    """Ten steps of a second: after the sixth an urgent job is submitted, and the checkpoint of the fourth counts."""
    first = account.Attempt(start=101, ready=103, told=[(step, 103.0 + step) for step in range(1, 7)])
    second = account.Attempt(start=121, ready=125, told=[(step, 121.0 + step) for step in range(5, 11)])
    held = [(100.0, 111.0), (119.0, 132.0)]
    return account.Run([first, second], held, urgent=[(112.0, 115.0)], asked=[108.5], done=True)


def test_every_second_lost_at_a_preemption_has_a_cause() -> None:
    run = preempted()
    [loss] = account.losses(run, ideal=1.0)
    assert loss.causes == {
        "stop and save": 2.0,
        "queue": 4.0,
        "launch": 2.0,
        "imports and load": 4.0,
        "replayed steps": 2.0,
    }
    assert (loss.steps, loss.gap) == (2, 6.0)
    assert run.step_seconds == 1.0 and (run.allocated, run.wall) == (24.0, 32.0)
    assert account.goodput(run, 10, 1.0) == 10 / 24


def test_nothing_is_lost_where_nothing_went_on() -> None:
    run = preempted()
    assert account.losses(replace(run, attempts=run.attempts[:1]), 1.0) == []
    assert account.losses(replace(run, asked=[]), 1.0) == []


def test_a_run_is_read_back_as_it_was_written() -> None:
    assert account.Run.of(json.loads(json.dumps(preempted().tree()))) == preempted()


@pytest.mark.parametrize("count", [0, 2, 5, 10])
def test_preemptions_are_seeded_and_leave_steps_between_them(count: int) -> None:
    steps = runs.preempted_after(count, 300, seed=1)
    assert steps == runs.preempted_after(count, 300, seed=1) != runs.preempted_after(count, 300, 2) or not count
    assert len(steps) == count and all(0 < step < 300 for step in steps)
    assert all(later - earlier >= 0.4 * 300 / count - 1 for earlier, later in zip(steps, steps[1:], strict=False))


def test_a_peer_that_does_not_finish_is_a_row_with_its_cause() -> None:
    names = list(runs.CONTENDERS)
    results = {(name, count): preempted() for name in names for count in (0, 5)}
    results["lightning", 5] = account.Run(words="its job left the queue at step 6 of 10")
    found = [row for row in goodput.rows(results, 10, (0, 5)) if row.name == "goodput, k = 5"]
    assert [(row.peer_name, row.met) for row in found] == [
        ("", False),
        ("HF Trainer, JIT checkpoint", False),
        ("Lightning, auto-requeue", None),
        ("submitit", None),
    ]
    assert (found[2].cause, found[2].goal, found[3].goal) == ("its job left the queue at step 6 of 10", "to finish", "")
    assert all(row.outlast == 10 / 24 for row in found)


@given(gpus=st.integers(8, 4096), gap=st.floats(0, 600), more=st.floats(1.01, 10), stall=st.floats(0.1, 60))
def test_the_modelled_goodput_falls_with_every_loss(gpus: int, gap: float, more: float, stall: float) -> None:
    site, saves = model.Site(gpus=gpus), model.Saves(stall=stall)
    best = model.goodput(site, saves, gap)
    assert 0 < best < 1
    worse = [
        model.goodput(site, saves, gap + 10),
        model.goodput(replace(site, walltime=site.walltime / more), saves, gap),
        model.goodput(replace(site, preemptions_a_day=site.preemptions_a_day * more), saves, gap),
        model.goodput(replace(site, gpu_hours_between_failures=1000.0 / more), saves, gap),
        model.goodput(site, replace(saves, bytes_a_second=saves.bytes_a_second / more), gap),
    ]
    assert all(other < best for other in worse)


@given(stall=st.floats(0.1, 1000), between=st.floats(1e5, 1e7), other=st.floats(0.1, 10))
def test_no_interval_loses_less_than_youngs(stall: float, between: float, other: float) -> None:
    def lost(every: float) -> float:
        return stall / every + every / 2 / between

    every = model.interval(stall, between)
    assert lost(every) <= lost(every * other) * (1 + 1e-9)


def test_the_page_and_the_readme_show_the_newest_results() -> None:
    assert page.PAGE.read_text() == page.page(), "python -m benchmarks.page"
    assert page.README.read_text() == page.readme(page.README.read_text()), "python -m benchmarks.page"
    found = {block.name: block for block in page.newest()}
    assert all(
        block.date == max(file.stem for file in RESULTS if name in json.loads(file.read_text()))
        for name, block in found.items()
    )
    missed = {name: [row for row in block.rows if verdict(row) in OPEN] for name, block in found.items()}
    assert all(row.cause in page.page() for rows in missed.values() for row in rows)
    assert all(
        f"[{len(rows)}, and why](docs/benchmarks.md#{name})" in page.summary() for name, rows in missed.items() if rows
    )
