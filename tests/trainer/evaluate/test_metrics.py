"""Scores are those of the field's own packages, and intervals are as wide as chance makes them."""

from __future__ import annotations

import json
import random
import sys

import numpy as np
import pytest
from absl.logging import get_absl_handler
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from sklearn.metrics import f1_score

from settings import ConfigError
from trainer.data.values import Completion
from trainer.evaluate import baselines, metrics, rows
from trainer.evaluate.rouge import rouge_l
from trainer.evaluate.spoken import Form, Said, figures, form_of

# What rouge_score logs with closes its stream when logging is set up anew: not the one of pytest's capture.
get_absl_handler().python_handler.stream = sys.__stderr__

LABELS = [f"R{number}" for number in range(8)]
WORDS = [
    "The",
    "bank",
    "must",
    "raise",
    "Tier-1",
    "capital",
    "by",
    "4.5",
    "%",
    "(art.",
    "92)",
    "within",
    "30",
    "days,",
    "É",
    "12,5",
    "né",
    "_x_",
]
FORM = Form("violations", "Directive:")


def said(draw: random.Random, most: int = 4) -> Said:
    labels = draw.sample(LABELS, draw.randint(0, most))
    return Said(frozenset(labels), " ".join(draw.choices(WORDS, k=draw.randint(0, 40))))


def table(rows: list[Said], names: list[str]) -> np.ndarray:
    return np.array([[name in one.labels for name in names] for one in rows], int)


def test_f1_is_that_of_scikit_learn_and_rouge_l_that_of_rouge_score() -> None:
    draw = random.Random(1)
    pairs = [(said(draw), said(draw)) for _ in range(1000)]
    references, answers = [a for a, _ in pairs], [b for _, b in pairs]
    answers[7] = Said(frozenset({"invented", "R1"}), "x")  # a label that no reference has
    found = metrics.with_intervals(metrics.marks(references, answers, [""] * 1000, labelled=True))
    every, known = sorted([*LABELS, "invented"]), LABELS
    micro = f1_score(table(references, every), table(answers, every), average="micro")
    macro = f1_score(table(references, known), table(answers, known), average="macro")
    assert found["f1_micro"].value == pytest.approx(micro, abs=1e-12)
    assert found["f1_macro"].value == pytest.approx(macro, abs=1e-12)
    exact = np.mean([a.labels == b.labels for a, b in zip(references, answers, strict=True)])
    assert found["exact_match"].value == pytest.approx(exact)
    scorer = RougeScorer(["rougeL"])
    for reference, answer in pairs:
        theirs = scorer.score(reference.text, answer.text)["rougeL"].fmeasure
        assert rouge_l(reference.text, answer.text) == pytest.approx(theirs, abs=1e-12)


@given(st.text("ab 1É-\n", max_size=40), st.text("ab 1É-\n", max_size=40))
def test_rouge_l_of_odd_texts(reference: str, answer: str) -> None:
    theirs = RougeScorer(["rougeL"]).score(reference, answer)["rougeL"].fmeasure
    assert rouge_l(reference, answer) == pytest.approx(theirs, abs=1e-12)


def test_an_interval_is_as_wide_as_chance_makes_it() -> None:
    """Of a share of 0.9 in 400 rows: 0.9 +- 1.96 x sqrt(0.9 x 0.1 / 400), and the same ones every time."""
    right, wrong = Said(frozenset({"R1"}), ""), Said(frozenset(), "")
    rows = [right] * 360 + [wrong] * 40
    marks = metrics.marks([right] * 400, rows, [""] * 400, labelled=True)
    value, low, high = metrics.with_intervals(marks)["exact_match"]
    assert value == 0.9 and low is not None and high is not None
    assert low == pytest.approx(0.9 - 0.0294, abs=0.004) and high == pytest.approx(0.9 + 0.0294, abs=0.004)
    assert metrics.with_intervals(marks)["exact_match"] == (value, low, high)
    other = metrics.marks([right] * 400, [right] * 368 + [wrong] * 32, [""] * 400, labelled=True)
    gap = metrics.differences(other, marks)["exact_match"]  # all but 8 rows are alike: paired, that is seen
    assert gap.value == pytest.approx(0.02) and gap.low is not None and gap.low > 0
    none = metrics.with_intervals(marks.of(np.arange(360, 400)))
    assert none["f1_micro"].value == 0.0 and none["figures"] == (None, None, None)


def test_what_an_answer_says() -> None:
    text = '{"violations": ["B", "A", "A"]}\nRatios 4.1 %.\n\nDirective: raise 4.10 % by 1,250,000.\nAt once.'
    assert FORM.read(text) == Said(frozenset({"A", "B"}), "raise 4.10 % by 1,250,000.\nAt once.")
    for broken in (
        "",
        "A, B",
        '{"violations": "A"}',
        '{"violations": [1]}',
        '{"other": []}',
        "[1]",
        '{"violations": [',
    ):
        assert FORM.read(f"{broken}\nDirective: x") == Said(frozenset(), "x", parsed=False)
    assert Form(None, None).read(" plain\n") == Said(frozenset(), "plain")
    assert form_of({"1": text}, "violations", "Directive:") == FORM
    assert form_of({"1": text}, "violations", "") == Form("violations", None)
    assert form_of({"1": "plain", "2": text.partition("\n")[2]}, "violations", "Directive:") == (None, None)
    with pytest.raises(ConfigError, match="1 of 2 references have no labels, x the first"):
        form_of({"y": text, "x": "plain"}, "violations", "Directive:")


def test_figures_are_compared_in_one_way_of_writing() -> None:
    text = "1,250,000 and 4.10, 12,5; 0.050 on 2025-12-31 (art. 92(1)) section 3.1.2, CET1 C01.00 7x 100. 1.5k 1,250,000EUR"
    assert figures(text) == ["1250000", "4.1", "12.5", "0.05", "2025", "12", "31", "92", "1", "3.1.2", "100"]
    answer = Said(frozenset(), "raise 4.1 by 99")
    assert metrics.with_intervals(metrics.marks([answer], [answer], ["it is 4.10"], True))["figures"].value == 0.5


def test_baselines_and_the_nearest_training_prompt() -> None:
    prompts = [f"bank {name} ratio {number}" for name, number in (("north", 4.1), ("south", 9.7), ("east", 8.3))] * 3
    texts = [Said(frozenset({"A"}), "raise it now"), Said(frozenset(), "none."), Said(frozenset({"A", "B"}), "stop it")]
    found = list(baselines.nearest(["ratio 9.7 of bank south", "bank east ratio 8.3"], prompts[:3]))
    assert [one.row for one in found] == [1, 2] and 0 < found[0].similarity <= found[1].similarity <= 1.0000001
    made = baselines.baselines(["A", "B"], [texts[1], *texts, texts[1]], found)
    assert {name: answers[0] for name, (answers, _) in made.items()} == {
        "none": Said(frozenset(), "none."),
        "all": Said(frozenset({"A", "B"}), "raise it now"),
        "majority": Said(frozenset(), "none."),
        "nearest": texts[0],
        "fixed": Said(frozenset(), "raise it now"),
    }
    assert all(len(answers) == 2 for answers, _ in made.values())
    assert set(baselines.baselines([], texts, found)) == {"nearest", "fixed"}
    assert json.dumps(found)


def test_of_a_prompt_that_comes_again_the_fullest_answer_counts() -> None:
    """Else labels alone, trained on beside whole answers, would be what baselines answer."""
    told = [("a", "x"), ("a", "x and why"), ("b", "y and why"), ("b", "y")]
    made = [rows.Row(str(number), Completion(*one), one[1], None) for number, one in enumerate(told)]
    assert rows.fullest(made) == [("a", "x and why"), ("b", "y and why")]
