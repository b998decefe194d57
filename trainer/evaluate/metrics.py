"""Scores of answers, and how far they may be off by the choice of rows: all from one table of marks a row.

A score is a function of how often each row counts, so that a bootstrap is a matrix product.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from trainer.evaluate.rouge import rouge_l
from trainer.evaluate.spoken import Said, figures

Table = npt.NDArray[np.float64]

RESAMPLES = 2000
DRAWS = 20_000_000
"""Of rows, over all resamples: beyond 10,000 rows there are fewer of them, and at least 200."""
SEED = 0
METRICS = {
    "f1_micro": "F1 micro",
    "f1_macro": "F1 macro",
    "exact_match": "exact match",
    "rouge_l": "ROUGE-L",
    "rouge_l_findings": "ROUGE-L, findings",
    "figures": "figures given",
}
"""How people call them. Findings: rows whose reference has labels. Figures: those of the text that the prompt has."""


class Marks(NamedTuple):
    """Of each row; a table of labels is (rows, labels), the labels those of all references and answers."""

    hit: Table
    false: Table
    missed: Table
    exact: Table
    rouge: Table
    found: Table
    """Figures of the answer's text that the prompt has, of so many `figures`."""
    figures: Table
    labelled: bool
    """The task has labels."""

    def of(self, rows: npt.NDArray[np.int64]) -> Marks:
        """Of some rows."""
        tables = {name: table[rows] for name, table in self._asdict().items() if name != "labelled"}
        return self._replace(**tables)


def marks(references: Sequence[Said], answers: Sequence[Said], prompts: Sequence[str], labelled: bool) -> Marks:
    names = sorted(set().union(*(said.labels for said in (*references, *answers))))
    wanted, given = _table(references, names), _table(answers, names)
    same = (a.labels == b.labels if labelled else a.text == b.text for a, b in zip(references, answers, strict=True))
    counts = [_found(said.text, prompt) for said, prompt in zip(answers, prompts, strict=True)]
    return Marks(
        hit=wanted * given,
        false=given * (1 - wanted),
        missed=wanted * (1 - given),
        exact=np.fromiter(same, np.float64, len(references)),
        rouge=np.array([rouge_l(a.text, b.text) for a, b in zip(references, answers, strict=True)]),
        found=np.array([found for found, _ in counts], np.float64),
        figures=np.array([all_ for _, all_ in counts], np.float64),
        labelled=labelled,
    )


def _table(said: Sequence[Said], names: Sequence[str]) -> Table:
    return np.array([[float(name in one.labels) for name in names] for one in said]).reshape(len(said), len(names))


def _found(text: str, prompt: str) -> tuple[int, int]:
    there = set(figures(prompt))
    ours = figures(text)
    return sum(figure in there for figure in ours), len(ours)


def scores(marks: Marks, weights: Table) -> dict[str, Table]:
    """Each score, (n,), where row i counts weights[:, i] times, (n, rows). NaN: there is nothing that it could be of.

    F1 macro is the mean over the labels that a reference has: an answer's invention is a mistake, and no class.
    """
    rows = weights.sum(axis=1)
    out = {"exact_match": weights @ marks.exact / rows, "rouge_l": weights @ marks.rouge / rows}
    if not marks.labelled:
        return out
    hit, wrong = weights @ marks.hit, weights @ (marks.false + marks.missed)
    known = (marks.hit + marks.missed).any(axis=0)
    finding = (marks.hit + marks.missed).any(axis=1).astype(np.float64)
    each = _f1(hit[:, known], wrong[:, known])
    f1 = {"f1_micro": _f1(hit.sum(axis=1), wrong.sum(axis=1)), "f1_macro": _mean_of_numbers(each)}
    findings = _ratio(weights @ (finding * marks.rouge), weights @ finding)
    given = _ratio(weights @ marks.found, weights @ marks.figures)
    return {**f1, **out, "rouge_l_findings": findings, "figures": given}


def f1_by_label(marks: Marks) -> Table:
    """(labels,)"""
    return _f1(marks.hit.sum(axis=0), (marks.false + marks.missed).sum(axis=0))


def _f1(hit: Table, wrong: Table) -> Table:
    return _ratio(2 * hit, 2 * hit + wrong)


def _ratio(part: Table, whole: Table) -> Table:
    return np.divide(part, whole, out=np.full_like(whole, np.nan), where=whole > 0)


def _mean_of_numbers(values: Table) -> Table:
    """Over the last axis, of what is a number."""
    there = ~np.isnan(values)
    return _ratio(np.where(there, values, 0.0).sum(axis=-1), there.sum(axis=-1).astype(np.float64))


# --- intervals ------------------------------------------------------------------------------------------


class Score(NamedTuple):
    """A value and its 95 % interval by bootstrap over the rows; None: there is no such number."""

    value: float | None
    low: float | None
    high: float | None


def with_intervals(marks: Marks) -> dict[str, Score]:
    return _scored(scores(marks, _once(marks)), scores(marks, resampled(len(marks.exact))))


def differences(ours: Marks, theirs: Marks) -> dict[str, Score]:
    """Ours minus theirs, row by row the same rows in every resample."""
    draws = resampled(len(ours.exact))

    def minus(weights: Table) -> dict[str, Table]:
        a, b = scores(ours, weights), scores(theirs, weights)
        return {name: a[name] - b[name] for name in a}

    return _scored(minus(_once(ours)), minus(draws))


def _once(marks: Marks) -> Table:
    return np.ones((1, len(marks.exact)))


@lru_cache(maxsize=1)  # 1.6 GB of a million rows
def resampled(rows: int) -> Table:
    """How often each row is drawn, (resamples, rows), in as many draws with replacement as there are rows."""
    resamples = max(200, min(RESAMPLES, DRAWS // rows))
    return np.random.default_rng(SEED).multinomial(rows, np.full(rows, 1 / rows), size=resamples).astype(np.float64)


def _scored(values: dict[str, Table], drawn: dict[str, Table]) -> dict[str, Score]:
    out = {}
    for name in (name for name in METRICS if name in values):
        numbers = drawn[name][~np.isnan(drawn[name])]
        low, high = np.percentile(numbers, (2.5, 97.5)) if len(numbers) else (np.nan, np.nan)
        out[name] = Score(*(None if np.isnan(one) else float(one) for one in (values[name][0], low, high)))
    return out
