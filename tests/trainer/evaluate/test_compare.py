"""Runs on the same rows: the paired difference, what each has cost and kept, a verdict, and a folder for blind raters."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

import pytest

import launch
from durable import append_line, read_lines
from settings import ConfigError, dump_yaml
from trainer.evaluate import compare, history, scores
from trainer.evaluate.folder import Folder
from trainer.evaluate.spoken import Form
from trainer.evaluate.verdict import verdict

FORM = Form("violations", "Directive:")
ROWS = 300


def text(labels: list[str]) -> str:
    return f"{json.dumps({'violations': labels})}\nso.\n\nDirective: {'raise it to 4.5 ```' if labels else 'none'}."


def answered(run: Path, right: float, data: str = "d1", rows: int = ROWS) -> None:
    """A finished evaluation: such a share of the rows with labels is answered rightly, the others with none."""
    draw = random.Random(1)
    lines = []
    for number in range(rows):
        labels = draw.choice([[], ["A"], ["A", "B"]])
        said = labels if draw.random() < right else []
        asked = {"id": str(number), "prompt": f"report {number}", "reference": text(labels), "group": None}
        lines.append({**asked, "answer": text(said), "tokens": 9, "ended": True})
    about = {"run": run.name, "step": 9, "data": {"file": "test.jsonl", "rows": rows, "sha256": data}, "new_tokens": 64}
    folder = Folder(run / "evaluation" / "test")
    folder.open(about)
    found = scores.of(scores.Judged(lines, FORM), [])
    folder.close(lines, {"about": about, **found, "too_long": 0, "losses": {}})


def a_run(folder: Path, **more: Any) -> Path:
    folder.mkdir(parents=True)
    recipe = {
        "name": folder.name,
        "model": {"path": "weights"},
        "data": {"train": ["a"], "seq_len": 8, "format": "completion"},
        "train": {"global_batch_size": 4, "steps": 9},
    }
    (folder / "config.yaml").write_text(dump_yaml({**recipe, **more}))
    (folder / "job.yaml").write_text(f"name: {folder.name}\n")
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    made = [a_run(tmp_path / "runs" / "everything"), a_run(tmp_path / "runs" / "small", lora={"r": 8})]
    answered(made[0], 0.9)
    answered(made[1], 0.7)
    return made


def test_the_difference_is_that_of_the_same_rows(runs: list[Path]) -> None:
    result = compare.compared(compare.sides(runs, None))
    pair = result["pairs"][0]
    gap, (ours, theirs) = pair["differences"]["f1_micro"], (run["scores"]["f1_micro"] for run in result["runs"])
    assert gap["value"] == pytest.approx(ours["value"] - theirs["value"])
    assert 0 < gap["low"] < gap["value"] < gap["high"]
    assert gap["high"] - gap["low"] < theirs["high"] - theirs["low"] + ours["high"] - ours["low"]
    assert [run["method"] for run in result["runs"]] == ["full", "LoRA r=8"]
    assert "lora" in pair["settings"] and "optim.lr" in pair["settings"]
    words = pair["verdict"]
    assert "so everything is the better one on these rows by" in words and "(its own case: 12 points)" in words
    assert "300 rows" in words and "another seed" in words and words.count(". ") == 0  # one sentence
    turned = compare.compared(compare.sides(runs[::-1], "test"))["pairs"][0]
    assert turned["differences"]["f1_micro"]["value"] == pytest.approx(-gap["value"])
    assert "so everything is the better one" in turned["verdict"]


def test_answers_that_were_read_in_different_ways_are_not_compared(runs: list[Path]) -> None:
    file = runs[1] / "evaluation" / "test" / "scores.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "labels": None}))
    with pytest.raises(
        ConfigError, match="read in different ways: everything --labels violations .* small --labels None"
    ):
        compare.sides(runs, None)


def test_a_verdict_says_no_more_than_was_seen(runs: list[Path]) -> None:
    answered(third := a_run(runs[0].parent / "third", train={"global_batch_size": 8, "steps": 9}), 0.9)
    found = compare.sides([runs[0], third, runs[1]], None)
    result = compare.compared(found)
    assert [pair["runs"] for pair in result["pairs"]] == [
        ["everything", "third"],
        ["everything", "small"],
        ["third", "small"],
    ]
    same = result["pairs"][0]
    assert "which shows no difference" in same["verdict"] and "better" not in same["verdict"]
    assert "differ in more than the method (train.global_batch_size)" in same["verdict"]
    (lora_first,) = [pair for pair in result["pairs"] if pair["runs"] == ["third", "small"]]
    gaps = {"f1_micro": {"value": -0.1, "low": -0.2, "high": -0.05}}
    assert "small is the better one on these rows, against the 3 to 8 %" in verdict(
        {**lora_first, "differences": gaps}, found[1], found[2]
    )
    nothing = {"f1_micro": {"value": None, "low": None, "high": None}}
    assert "nothing to be told apart by" in verdict({**same, "differences": nothing}, found[0], found[1])
    other_room = {**same, "room": [64, 32]}
    assert "their answers had different room (64 and 32 tokens)" in verdict(other_room, found[0], found[1])


def test_what_cannot_be_compared_is_refused(runs: list[Path], capfd: pytest.CaptureFixture[str]) -> None:
    for rows, words in (
        (ROWS, "300 rows of test.jsonl (d1) and third 300 rows of test.jsonl (d2)"),
        (7, "third 7 rows"),
    ):
        answered(third := a_run(runs[0].parent / f"{rows}" / "third"), 0.9, data="d2", rows=rows)
        with pytest.raises(ConfigError, match="evaluated on different rows") as error:
            compare.sides([runs[0], third], None)
        assert words in str(error.value)
    (runs[1] / "evaluation" / "test" / "scores.json").unlink()
    with pytest.raises(ConfigError, match=r"no finished evaluation in common \(everything: test; small: none\)"):
        compare.sides(runs, None)
    with pytest.raises(ConfigError, match="small has no finished evaluation test: launch.py evaluate small"):
        compare.sides(runs, "test.jsonl")
    assert launch.main(["compare", "everything", "--runs-dir", str(runs[0].parent)]) == 78
    assert launch.main(["compare", "everything", "smal", "--runs-dir", str(runs[0].parent)]) == 78
    told = capfd.readouterr().err
    assert "takes two runs at least" in told and "did you mean small?" in told


def test_raters_do_not_learn_whose_answers_they_read(runs: list[Path], capfd: pytest.CaptureFixture[str]) -> None:
    argv = ["compare", "everything", "small", "--blind", "20", "--runs-dir", str(runs[0].parent)]
    assert launch.main(argv) == 0  # a process of its own, without torch
    folder, key = runs[0].parent / "blind-1", runs[0].parent / "blind-1-key.json"
    shown = capfd.readouterr().out
    assert str(folder) in shown and "minus" in shown and "the better one" in " ".join(shown.split())
    files = sorted(path.name for path in folder.iterdir())
    assert files == ["README.md", *(f"case-{number:02d}.md" for number in range(1, 21)), "ratings.csv"]
    assert not any(name in path.read_text() for path in folder.iterdir() for name in ("everything", "small", "LoRA"))
    whose = json.loads(key.read_text())["cases"]
    by_id = {run.name: {line["id"]: line for line in read_lines(run / "evaluation/test/answers.jsonl")} for run in runs}
    orders = set()
    for case, letters in whose.items():
        words = (folder / f"{case}.md").read_text()
        places = [words.index(f"## Answer {letter}") for letter in "AB"]
        parts = [words[places[0] : places[1]], words[places[1] :]]
        for letter, part in zip("AB", parts, strict=True):
            line = by_id[letters[letter]][letters["id"]]
            assert line["answer"] in part and f"\n{line['prompt']}\n" in words
        orders.add(letters["A"])
    assert orders == {"everything", "small"}  # drawn anew for each case
    ratings = list(csv.DictReader((folder / "ratings.csv").read_text().splitlines()))
    assert [(one["case"], one["answer"]) for one in ratings[:3]] == [
        ("case-01", "A"),
        ("case-01", "B"),
        ("case-02", "A"),
    ]
    again = compare.blind.write(compare.sides(runs, None), 20, runs[0].parent)
    assert json.loads(again[1].read_text()) == json.loads(key.read_text()) and again[0].name == "blind-2"
    with pytest.raises(ConfigError, match="--blind 301: the runs have 300 rows in common"):
        compare.blind.write(compare.sides(runs, None), 301, runs[0].parent)


def test_what_a_run_has_cost_and_kept(runs: list[Path]) -> None:
    run = runs[0]
    assert history.cost(run) is None and history.losses(run) == {}

    def tell(event: str, epoch: int, step: int, time: float, **values: Any) -> None:
        append_line(run / "events.jsonl", {"event": event, "epoch": epoch, "step": step, "time": time, **values})

    tell("resume", 1, 0, 110.0, world_size=4, device="NVIDIA H100")
    tell("evaluation", 1, 0, 120.0, loss=2.0, losses={"task": 3.0, "general": 2.0})
    tell("step", 1, 1, 130.0, memory_bytes=5e9)
    tell("evaluation", 1, 8, 180.0, loss=9.0, losses={"task": 9.0, "general": 9.0})  # beyond where attempt 2 resumed
    tell("resume", 2, 4, 300.0, world_size=2, device="NVIDIA H100")
    tell("step", 2, 5, 310.0, memory_bytes=7e9)
    tell("evaluation", 2, 9, 500.0, loss=2.2, losses={"task": 1.0, "general": 2.2})
    append_line(run / "attempts.jsonl", {"attempt": 1, "start": 100.0, "end": 190.0})
    cost = history.cost(run)
    assert cost == (pytest.approx((90 * 4 + 200 * 2) / 3600), "NVIDIA H100", 2, 2, 7_000_000_000)
    assert cost is not None and cost.unit == "GPU-hours"
    assert history.losses(run) == {"task": (3.0, 0, 1.0, 9), "general": (2.0, 0, 2.2, 9)}
