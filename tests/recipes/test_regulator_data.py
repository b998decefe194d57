"""The regulator's case: its data can be made again, read by a plain program, and judged from outside by Arelle."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from recipes.regulator import data, leaks, reader, text, xbrl
from recipes.regulator.concepts import MANDATORY, RATIOS, TEMPLATES, of_template
from recipes.regulator.report import Report, ReportError
from recipes.regulator.rules import CODES, judge
from recipes.regulator.scenarios import DIFFICULTIES
from recipes.regulator.wording import completion
from trainer.data.rows import Rows
from trainer.data.values import Completion
from trainer.sources import Source

ROOT = Path(__file__).parent.parent.parent
SIZES = {"train": 200, "dev": 30, "test": 40}
SAMPLE = 8
Made = dict[str, list[data.Example]]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module", params=[True, False], ids=["short", "whole"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Made, bool]:
    folder = tmp_path_factory.mktemp("case") / "data"
    return folder, data.make(folder, SIZES, 100, 25, request.param, seed=1), request.param


def test_the_same_bytes_for_the_same_seed(made: tuple[Path, Made, bool], tmp_path: Path) -> None:
    folder, _, short = made
    data.make(tmp_path / "again", SIZES, 100, 25, short, seed=1)
    data.make(tmp_path / "other", SIZES, 100, 25, short, seed=2)
    again, other = files(tmp_path / "again"), files(tmp_path / "other")
    assert files(folder) == again
    ours = {name for name in again if "taxonomy" not in name}
    assert ours and not any(again[name] == other[name] for name in ours)


def test_what_the_rows_hold(made: tuple[Path, Made, bool]) -> None:
    folder, examples, short = made
    rows = {split: [*map(json.loads, (folder / f"{split}.jsonl").read_text().splitlines())] for split in SIZES}
    assert {split: len(there) for split, there in rows.items()} == SIZES
    for split, there in rows.items():
        assert [row["id"] for row in there] == [f"{split}-{number:06}" for number in range(1, len(there) + 1)]
        for row in there:
            assert_keeps_the_contract(row)
    for key in ("institution", "date", "prompt"):
        assert not leaks.common(rows, key)
    alone = [*map(json.loads, (folder / "labels.jsonl").read_text().splitlines())]
    assert [row["id"] for row in alone] == [row["id"] for row in rows["train"]]  # of no others
    for row, labelled in zip(rows["train"], alone, strict=True):
        assert reader.labels(labelled) == reader.labels(row) and "\n" not in labelled["completion"]
        assert labelled["prompt"] == row["prompt"]
    every = [row for there in rows.values() for row in there]
    figures = Counter(row["prompt"].partition("\n")[2] for row in every)
    assert figures.most_common(1)[0][1] == 1
    assert {code for row in every for code in reader.labels(row)} == set(CODES)
    clean = sum(not reader.labels(row) for row in every) / len(every)
    assert 0.3 < clean < 0.5
    for difficulty, share in DIFFICULTIES.items():
        found = sum(row["difficulty"] == difficulty for row in every) / len(every)
        assert found == pytest.approx(share, abs=0.07)


def assert_keeps_the_contract(row: dict[str, Any]) -> None:
    """Rules as JSON, the analysis, then a paragraph with the directive, whose figures are its own."""
    assert row.keys() == {"id", "prompt", "completion", "difficulty", "institution", "date"}
    first, _, rest = row["completion"].partition("\n")
    analysis, gap, directive = rest.rpartition("\n\nDirective: ")
    broken = json.loads(first)["violations"]
    assert json.loads(first).keys() == {"violations"} and broken == sorted(set(broken) & set(CODES))
    assert gap and analysis and "\n" not in analysis and "\n" not in directive
    assert (directive == "none.") == (not broken)
    assert len(re.findall(r"\b(?:CRR|CRD)\b", directive)) == len(broken)
    assert len(re.findall(r"[Ww]ithin \d+ days", directive)) == len(broken)
    assert "{" not in rest and row["prompt"].endswith("\n")


def test_the_trainer_takes_them_as_they_are(made: tuple[Path, Made, bool]) -> None:
    folder, examples, _ = made
    source = Source([str(folder / "train.jsonl")], "completion")
    rows = list(Rows(source))
    assert not any(row.reason for row in rows)
    assert [row.value for row in rows] == [
        Completion(one.row["prompt"], one.row["completion"]) for one in examples["train"]
    ]


def test_a_plain_program_reads_every_label_from_text_and_instance(
    made: tuple[Path, Made, bool], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, examples, short = made
    names = [str(folder / f"{split}.jsonl") for split in SIZES]
    assert reader.main(names) == 0
    assert capsys.readouterr().out.count("F1 1.0000") == 3
    shown = text.short if short else text.whole
    for example in examples["test"][:25]:
        report = xbrl.read((folder / "instances" / f"{example.row['id']}.xml").read_bytes())
        assert judge(report) == reader.labels(example.row)
        report.scale, report.percent = example.report.scale, example.report.percent
        assert shown(report) == example.row["prompt"]  # nothing is in the text that is not in the instance


def test_hard_cases_are_hard(made: tuple[Path, Made, bool]) -> None:
    _, examples, _ = made
    by: dict[str, list[data.Example]] = {difficulty: [] for difficulty in DIFFICULTIES}
    for example in examples["train"]:
        by[example.row["difficulty"]].append(example)
    assert all(len(reader.labels(one.row)) > 1 for one in by["several"])
    assert all(one.report.scales or not one.report.percent for one in by["units"])
    limits = {"CET1R": "0.045", "T1R": "0.06", "TCR": "0.08", "LR": "0.03", "LCR": "1", "NSFR": "1"}
    for one in by["edge"]:
        gaps = [abs((one.report.values[key] or 0) - Decimal(limit)) for key, limit in limits.items()]
        assert min(gaps) <= Decimal("0.00055")
    hidden = [one for one in by["combined"] if {"RATIO"} < set(reader.labels(one.row))]
    assert hidden  # a ratio that is printed as if nothing were broken
    for one in hidden:
        [code] = set(reader.labels(one.row)) - {"RATIO"}
        assert judge(replace(one.report, values={k: v for k, v in one.report.values.items() if k in RATIOS})) == [
            "MISSING"
        ], code


def test_arelle_accepts_the_instances_and_confirms_the_labels(made: tuple[Path, Made, bool]) -> None:
    """So many in every run, 500 in a nightly one."""
    folder, _, short = made
    argv = [sys.executable, "-m", "recipes.regulator.confirm", str(folder), "--limit", str(SAMPLE)]
    shown = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
    assert shown.stdout.startswith(f"{SAMPLE} of {SAMPLE} valid, {SAMPLE} of {SAMPLE} labels confirmed"), shown
    assert shown.returncode == 0


@pytest.mark.nightly
def test_arelle_confirms_five_hundred(tmp_path: Path) -> None:
    data.make(tmp_path, {"train": 1, "dev": 1, "test": 500}, 0, 500, short=False, seed=1)
    argv = [sys.executable, "-m", "recipes.regulator.confirm", str(tmp_path)]
    shown = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
    assert shown.stdout.startswith("500 of 500 valid, 500 of 500 labels confirmed"), shown.stdout + shown.stderr


# --- reports that are wrong -----------------------------------------------------------------------------------


@pytest.fixture
def good() -> Report:
    """Breaks nothing."""
    rng_of = data.examples("train", ["00001"], 20, True, 1, set())
    return next(one.report for one in rng_of if not reader.labels(one.row) and one.row["difficulty"] == "plain")


def written(report: Report, *changes: tuple[str, str]) -> bytes:
    """Its instance, with parts replaced that surely stand there."""
    instance = xbrl.write(report)
    for old, new in changes:
        assert old in instance
        instance = instance.replace(old, new)
    return instance.encode()


def test_a_nil_fact_and_a_missing_template_are_judged(good: Report) -> None:
    assert judge(good) == judge(xbrl.read(written(good))) == []
    for key in MANDATORY:
        nil = replace(good, values={**good.values, key: None})
        assert judge(nil) == judge(xbrl.read(written(nil))) == judge(text.read(text.short(nil))) == ["MISSING"]
    for template in TEMPLATES:
        lost = {k: v for k, v in good.values.items() if k not in {c.key for c in of_template(template)}}
        if len(lost) < len(good.values):
            less = replace(good, values=lost)
            assert judge(less) == judge(xbrl.read(written(less))) == judge(text.read(text.short(less))) == ["MISSING"]
            assert "MISSING" in completion(data.Random(1), less, ["MISSING"], True)


BAD: list[tuple[str, Callable[[Report], bytes], str]] = [
    ("cut", lambda r: written(r)[:900], "no XML"),
    ("not XML", lambda r: b"LEI=1", "no XML"),
    ("another root", lambda r: b"<html/>", "no XBRL instance"),
    ("dollars", lambda r: written(r, ("iso4217:EUR", "iso4217:USD")), "its unit is USD"),
    ("a ratio in euros", lambda r: written(r, ('<p:LCR contextRef="c" unitRef="pure"', '<p:LCR contextRef="c" unitRef="EUR"')), "LCR: its unit is EUR"),
    ("an amount without unit", lambda r: written(r, ('<p:TREA contextRef="c" unitRef="EUR"', '<p:TREA contextRef="c"')), "TREA: its unit is none"),
    ("no number", lambda r: written(r, (f">{r.values['OF']:f}<", ">much<")), "'much' is no number"),
    ("infinite", lambda r: written(r, (f">{r.values['OF']:f}<", ">INF<")), "is no number"),
    ("of a size that is no sum", lambda r: written(r, (f">{r.values['OF']:f}<", ">1E+99999999<")), "is no number"),
    ("unknown", lambda r: written(r, ("p:TREA", "p:TREE")), "no such concept"),
    ("twice", lambda r: written(r, ("p:AT1", "p:T1")), "T1 stands there twice"),
    ("two dates", lambda r: written(r, (f"<p:reference contextRef=\"c\">{r.reference}", '<p:reference contextRef="c">2001-03-31')), "reference says 2001-03-31"),
    ("no date", lambda r: written(r, (f">{r.filed}<", "><")), "filed: a report has one date"),
    ("two banks", lambda r: written(r, (f"{r.institution}</xbrli:identifier></xbrli:entity><xbrli:period><xbrli:instant>{r.reference}</xbrli:instant></xbrli:period></", "9</xbrli:identifier></xbrli:entity><xbrli:period><xbrli:instant>2020-01-01</xbrli:instant></xbrli:period></")), "of one institution"),
    ("entities", lambda r: b'<!DOCTYPE x [<!ENTITY a "b">]>' + written(r, (f">{r.filed}<", ">&a;<")).partition(b"?>")[2], "a document type: an instance has none"),
]  # fmt: skip


@pytest.mark.parametrize(("bad", "why"), [pytest.param(bad, why, id=name) for name, bad, why in BAD])
def test_an_instance_that_is_wrong_is_refused(good: Report, tmp_path: Path, bad: Any, why: str, capsys: Any) -> None:
    with pytest.raises(ReportError, match=re.escape(why)):
        xbrl.read(bad(good))
    file = tmp_path / "report.xml"
    file.write_bytes(bad(good))
    assert reader.main([str(file)]) == 78
    said = capsys.readouterr().err
    assert why in said and said.count("\n") == 1 and "Traceback" not in said


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("LEI=", "Bank ", "no report begins with"),
        ("EUR\n", "USD\n", "amounts in"),
        ("ref=2", "ref=x", "is no date"),
        ("C47.00", "C99.00", "no template and no row"),
        ("C47.00 ", "C47.00 USD ", "amounts in USD"),
        ("MR=", "MR", "is no KEY=VALUE"),
        ("TREA=", "TREA=1,", "a whole number of the unit"),
        ("AT1=", "T1=", "T1 stands there twice"),
        ("EXP=", "LB=", "C47.00: there is no LB"),
        ("LR=", "LR=x", "a ratio is 4.50% or 0.0450"),
    ],
)
def test_a_text_that_is_wrong_is_refused(good: Report, old: str, new: str, why: str) -> None:
    shown = text.short(good)
    assert old in shown
    with pytest.raises(ReportError, match=re.escape(why)):
        text.read(shown.replace(old, new, 1))


# --- leaks ----------------------------------------------------------------------------------------------------


def test_a_leak_is_found(made: tuple[Path, Made, bool], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, examples, _ = made
    assert leaks.main([str(folder)]) == 0
    assert "in two splits: 0 institutions, 0 dates, 0 prompts" in capsys.readouterr().out
    for split in SIZES:
        shutil.copyfile(folder / f"{split}.jsonl", tmp_path / f"{split}.jsonl")
    leaked = examples["train"][6].row
    with (tmp_path / "test.jsonl").open("a") as rows:
        rows.write(json.dumps({**leaked, "id": "test-leak"}) + "\n")
    assert leaks.main([str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert "1 institutions, 1 dates, 1 prompts" in said and f"test-leak  {leaked['id']}  100.0%" in said
