"""The experiment on forgetting: its texts, its arithmetic, and that the page says what was recorded. Nothing is trained."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import __main__ as bench
from benchmarks.forgetting import corpus, figures, measure
from benchmarks.forgetting.experiment import FULL, Arm, Place
from benchmarks.forgetting.figures import Course
from recipes import prose
from settings import merge, parse_yaml
from trainer.config import resolve

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "forgetting.md"
PICTURE = ROOT / "docs" / "forgetting.svg"


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    return json.loads(measure.RECORD.read_text())


# --- texts ----------------------------------------------------------------------------------------------------

words = st.sampled_from(["alpha", "beta", "gamma", "`Code`", "x_1"])
pieces = st.lists(st.lists(words, min_size=1, max_size=12).map(" ".join), max_size=4)


@given(st.lists(st.tuples(st.sampled_from([f"file{n}.py" for n in range(60)]), pieces), max_size=30))
def test_every_piece_is_in_one_split_once(documents: list[prose.Document]) -> None:
    splits = prose.divided(documents, corpus.SPLITS["general"])
    found = [prose.plain(piece) for texts in splits.values() for text in texts for piece in text.split("\n\n")]
    given = {prose.plain(piece) for _, some in documents for piece in some}
    assert sorted(found) == sorted(given)
    for split, texts in splits.items():  # and all of a file in the same one
        theirs = {piece for name, some in documents for piece in some if prose.split_of(name, splits) == split}
        assert {piece for text in texts for piece in text.split("\n\n")} <= theirs


def test_no_split_is_empty_and_held_out_is_a_twentieth() -> None:
    names = [f"folder/module{number}.py" for number in range(4000)]
    for kind, shares in (("general", {"held_out": 0.05, "kept": 0.15}), ("domain", {"held_out": 0.05})):
        placed = [prose.split_of(name, corpus.SPLITS[kind]) for name in names]
        for split, share in shares.items():
            assert placed.count(split) / len(names) == pytest.approx(share, abs=0.015)
        assert set(placed) == set(corpus.SPLITS[kind])


def test_prose_is_what_stands_in_whole_sentences() -> None:
    docstring = """Open the file that is named here
    and read all of it.

        >>> read(x, mode="rb", y=3, z=[1, 2, 3], w=None, v=0x10)

    :param x: int

    name -- the one that the caller has given to this function
    """
    assert list(prose.sentences(docstring)) == ["Open the file that is named here and read all of it."]
    assert prose.plain("Reads all that the `Foo` has for the one who is asking.") == prose.plain(
        "Reads all that the `Bar` has for the one who is asking."
    )


# --- arithmetic -----------------------------------------------------------------------------------------------


def course(rise: float, gain: float) -> Course:
    return Course([0, 10], [4.0, 4.0 + rise], [6.0, 6.0 - gain], {"domain": 100}, 0.1)


def test_shares_are_of_the_plain_run() -> None:
    none, held = course(1.0, 3.0), course(0.25, 2.7)
    assert held.rise_of(none) == pytest.approx(0.25) and held.gain_of(none) == pytest.approx(0.9)
    assert held.perplexity_of(none) == pytest.approx(1.34986, abs=1e-5)  # e^0.3
    assert (none.rise_of(none), none.gain_of(none), none.perplexity_of(none)) == (1, 1, 1)


def test_what_is_chosen_forgets_least_of_what_still_learns() -> None:
    none = course(1.0, 3.0)
    tried = {"weak": course(0.8, 3.0), "good": course(0.5, 2.86), "strong": course(0.1, 2.0)}
    assert figures.best(tried, none) == "good"
    del tried["weak"], tried["good"]
    assert figures.best({**tried, "stronger": course(0.0, 1.0)}, none) == "strong"


def toy() -> dict[str, Any]:
    def plain(one: Course) -> dict[str, Any]:
        return vars(one)

    tried = {"lr 1": plain(course(1.0, 3.0))}, {"a": plain(course(0.2, 2.9)), "b": plain(course(0.1, 2.0))}
    runs = [course(1.0, 3.0), course(1.2, 3.2)], [course(0.2, 2.9), course(0.3, 3.1)]
    return {
        "about": {"choosing_seed": 0},
        "chosen": {"none": "lr 1", "replay": "a"},
        "tried": dict(zip(("none", "replay"), tried, strict=True)),
        "runs": {name: list(map(plain, some)) for name, some in zip(("none", "replay"), runs, strict=True)},
        "step_seconds": {"none": 0.1, "EWC": 0.125},
    }


def test_a_line_of_the_table_and_its_rows() -> None:
    lines = figures.table(toy()).splitlines()
    assert lines[3] == "| replay | a | 0.250 ± 0.071 | 22% ± 4% | 3.000 ± 0.141 | 96.8% ± 0.1% | 1.105 ± 0.000 | met |"
    none_rise, none_gain, rise, gain, plain, held = figures.rows(toy())
    assert (none_rise.outlast, rise.outlast, rise.peer, rise.met) == pytest.approx((1.1, 0.25, 1.1, True))
    assert (gain.peer, gain.met, none_gain.goal) == (pytest.approx(3.1), True, "")
    assert (held.outlast, held.ratio, plain.ratio) == pytest.approx((125, 0.8, 1))


def test_a_missed_goal_has_its_cause_from_what_was_tried() -> None:
    missed = toy()
    missed["runs"]["replay"] = [vars(course(0.5, 2.0))] * 2
    assert not any(figures.results(missed)[1].meets)
    assert [row.cause for row in figures.rows(missed)][2] == (
        "measured, seed 0: of 2 settings those that keep the gain rise by 20% of none's at least, those that hold the "
        "rise gain 96.7% at most"
    )


@given(st.floats(0.1, 3), st.floats(0.5, 5), st.floats(-1, 3), st.floats(-1, 5))
def test_less_loss_is_more_gain_and_less_perplexity(rise: float, gain: float, other: float, less: float) -> None:
    none, one = course(rise, gain), course(other, less)
    assert (one.gain_of(none) > 1) == (one.perplexity_of(none) < 1) or less == pytest.approx(gain)
    assert one.rise_of(none) * none.rise == pytest.approx(one.rise, abs=1e-9)


# --- recipes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arm", [Arm(1e-3), Arm(1e-3, 0.1), Arm(1e-3, 0.0, "l2sp", 3.0), Arm(1e-3, 0.1, "ewc", 30.0)])
def test_every_run_is_a_recipe(arm: Arm, tmp_path: Path) -> None:
    place = Place(tmp_path, FULL, "fingerprint")
    recipe = place.domain(arm, 1, shown=True)
    config = resolve(recipe, "recipe")
    assert config.stages is not None and set(config.data.keys("evaluation")) == {"domain", "general"}
    assert config.evaluation.limits == {"general": 0.05}
    others = [place.domain(replace(arm, lr=2e-3), 1, True), place.domain(arm, 2, True), place.domain(arm, 1, False)]
    assert len({place.run(one) for one in [recipe, *others, place.base(1)]}) == 5


# --- the page -------------------------------------------------------------------------------------------------


def test_the_page_has_the_tables_of_the_record(record: dict[str, Any]) -> None:
    assert figures.table(record) in PAGE.read_text()
    assert figures.tried(record) in PAGE.read_text()


def test_the_dated_results_are_of_the_record(record: dict[str, Any]) -> None:
    dated = [json.loads(file.read_text()) for file in sorted(bench.RESULTS.glob("????-??-??.json"))]
    newest = [one["forgetting"] for one in dated if "forgetting" in one][-1]
    assert newest["rows"] == [bench.tidy(row) for row in figures.rows(record)] and not newest["quick"]


def test_the_picture_is_of_the_record_and_takes_the_pages_colour() -> None:
    text = PICTURE.read_text()
    assert hashlib.sha256(measure.RECORD.read_bytes()).hexdigest() in text
    root = ElementTree.fromstring(text)
    shown = {node.text for node in root.iter("{http://www.w3.org/2000/svg}text")}
    assert set(json.loads(measure.RECORD.read_text())["runs"]) <= shown
    assert "currentColor" in text and "prefers-color-scheme" in text and len(text) < 200_000


def test_the_lines_to_paste_are_settings() -> None:
    base = {
        "name": "pasted",
        "model": {"path": "model"},
        "data": {"train": ["domain.jsonl"], "seq_len": 128},
        "train": {"global_batch_size": 8},
    }
    blocks = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) >= 4
    for block in blocks:
        pasted = merge(base, parse_yaml(block, "page"))
        if "stages" not in pasted:
            pasted["train"] = {**base["train"], "epochs": 1}
        resolve(pasted, "page")
