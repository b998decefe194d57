"""The page, its numbers, and what a browser says to it."""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import launch
from envs.browser import PROGRAM, browser
from settings import ConfigError
from tests.trainer.report.lives import FIVE_CUTS, Life, Truth, write_run
from timeline import PARTS
from trainer.report import __main__ as command
from trainer.report import words
from trainer.report.charts import POINTS, curve, powers, short, ticks
from trainer.report.files import as_json, made, write_html
from trainer.report.page import page


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Truth:
    return write_run(tmp_path_factory.mktemp("made"), FIVE_CUTS)


def test_each_second_of_five_interruptions_is_where_it_went(truth: Truth) -> None:
    report = made(truth.path)
    assert dict(zip(PARTS, report.where.parts, strict=True)) == pytest.approx(truth.parts)
    assert sum(report.where.parts) == pytest.approx(report.where.wall) == pytest.approx(sum(truth.parts.values()))
    assert report.where.goodput == pytest.approx(truth.parts["steps"] / (report.where.wall - truth.parts["queue"]))
    told = json.loads(as_json(report))
    assert (
        told["state"] == "done"
        and told["proof"]["ok"]
        and sum(told["time"]["seconds"].values()) == told["time"]["wall"]
    )
    assert "It used 0.369 rank-hours on CPUs in 6 attempts" in told["efficiency"]
    assert "(26 steps were done again)" in told["efficiency"]


def test_how_a_run_stands_and_what_to_do(tmp_path: Path) -> None:
    truth = write_run(tmp_path, [Life(0, 20, "timeout"), Life(20, 31, "crash")])
    run = made(truth.path).run
    assert words.standing(run).why == "attempt 2 ended by crash" and words.progress(run) == "step 31 of 31"
    ended = words.standing(replace(run, cancelled={"cause": "no progress", "reason": "three <crashes>"}))
    assert (ended.tone, ended.why, ended.next) == ("bad", "no progress: three <crashes>", "launch.py resume run")
    lines = (truth.path / "attempts.jsonl").read_text().splitlines()
    (truth.path / "attempts.jsonl").write_text(lines[0] + "\n")
    run = made(truth.path).run
    silent = words.standing(run)
    assert (silent.word, silent.tone, silent.next) == ("silent", "bad", "launch.py status run")
    running = words.standing(replace(run, now=run.attempts[-1].end + 5))
    assert (running.word, running.why) == ("running", "attempt 2; last word 5.0 s before this report")
    (truth.path / "CANCELLED").write_text('{"cause": "crash", "reason": "a <b>bold</b> claim"}')
    assert "a &lt;b&gt;bold&lt;/b&gt; claim" in page(made(truth.path))


@pytest.mark.skipif(PROGRAM is None, reason="there is no chromium: make setup installs it as root on Debian")
def test_a_browser_draws_all_without_a_word_or_a_request(truth: Truth) -> None:
    target, report = write_html(truth.path)
    assert len(report.charts) == 6
    with browser() as chromium:
        for width, scheme, media in ((1280, "light", "screen"), (390, "dark", "screen"), (800, "light", "print")):
            chromium.open(target.as_uri(), width, scheme, media)
            assert chromium.complaints() == []
            assert chromium.requests() == [target.as_uri()]
            assert chromium.value("document.documentElement.scrollWidth") <= width
            for chart in report.charts:
                box = f"document.querySelector('#plot-{chart.key} .plot > svg').getBoundingClientRect()"
                assert chromium.value(f"{box}.width") > 200 and chromium.value(f"{box}.height") > 150
                paths = f"document.querySelectorAll('#plot-{chart.key} .plot path.line').length"
                assert chromium.value(paths) == sum(len(one.x) > 1 for one in chart.curves)
            overlaps = chromium.value(_OVERLAPS)
            assert overlaps == [], overlaps
            assert chromium.value("getComputedStyle(document.body).backgroundColor") == (
                "rgb(20, 24, 29)" if scheme == "dark" else "rgb(255, 255, 255)"
            )


_OVERLAPS = """[...document.querySelectorAll('.plot')].flatMap(plot => ['x', 'y', 'm'].flatMap(kind => {
    const boxes = [...plot.querySelectorAll('.' + kind)].map(one => one.getBoundingClientRect());
    return boxes.slice(1).flatMap((box, i) => {
        const a = boxes[i], apart = box.left >= a.right || a.left >= box.right || box.top >= a.bottom || a.top >= box.bottom;
        return apart ? [] : [plot.parentElement.id + ' ' + kind];
    });
}))"""


def test_the_command_writes_every_form(truth: Truth, capfd: pytest.CaptureFixture[str]) -> None:
    (truth.path / "job.yaml").write_text("name: run\n")
    assert launch.main(["report", str(truth.path), "--markdown", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["run"] == "run"
    assert "| no nodes: in the queue, or stopped |" in (truth.path / "report.md").read_text()
    assert command.main(truth.path, png=True, markdown=False, as_json=False) == 0
    said = capfd.readouterr().out.splitlines()
    assert said[0].startswith("run: done, step 300 of 300; every step is done; on the way: 1 x time limit")
    assert (truth.path / "report.png").read_bytes().startswith(b"\x89PNG")
    html = (truth.path / "report.html").read_text()
    assert not re.search(r"<script|https?://|src=|url\(", html)
    with pytest.raises(ConfigError, match="no attempt has started there yet: nothing to report"):
        made(truth.path / "claims")


def test_a_long_curve_keeps_its_least_and_largest() -> None:
    y = np.sin(np.arange(100_000.0))
    y[77_777], y[5_000], y[60_000] = 9.0, -9.0, np.nan
    made_of = curve("", np.arange(100_000.0), y)
    assert made_of is not None and len(made_of.x) == POINTS
    assert (made_of.low.min(), made_of.high.max()) == (-9.0, 9.0)
    assert (made_of.low <= made_of.mean).all() and (made_of.mean <= made_of.high).all()
    assert curve("", np.arange(3.0), np.full(3, np.nan)) is None


def test_axes_are_round_numbers() -> None:
    assert ticks(0, 271) == [0, 100, 200] and ticks(4.4, 7.7) == [5, 6, 7] and ticks(1, 1) == [1]
    assert powers(0.02, 3000) == [0.1, 1, 10, 100, 1000]
    assert [short(v) for v in (0, 0.002, 3e-5, 12.5, 1500, 20_000, 1_500_000)] == [
        "0",
        "0.002",
        "3e-5",
        "12.5",
        "1,500",
        "20k",
        "1.5M",
    ]


@pytest.mark.nightly
def test_a_million_events(tmp_path: Path) -> None:
    """In 10 s and 500 MB, on one processor, from the start of Python to the file. Of data that is passed over some hundred
    times: with as little as the other tests have, the 40,000 passes alone would take a minute."""
    truth = write_run(
        tmp_path,
        [Life(0, 400_000, "timeout"), Life(390_000, 980_000, "done")],
        evaluate=1000,
        save=1000,
        documents=20_000,
    )
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "trainer.report", str(truth.path)], check=True)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        f"{time.perf_counter() - began:.1f} s, {used.ru_utime + used.ru_stime:.1f} s CPU, {used.ru_maxrss / 1024:.0f} MB"
    )
    assert used.ru_utime + used.ru_stime < 10 and used.ru_maxrss < 500 << 10
    assert (truth.path / "report.html").stat().st_size < 1 << 20
