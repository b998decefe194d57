"""All that is known of a run's answers, as it stands in scores.json."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from trainer.evaluate.baselines import baselines, nearest
from trainer.evaluate.metrics import METRICS, SEED, Marks, Score, f1_by_label, marks, resampled, with_intervals
from trainer.evaluate.spoken import Form, Said

Line = dict[str, Any]
"""Of answers.jsonl: id, prompt, reference, group, answer, tokens, ended."""


class Judged:
    """Answers beside their references."""

    def __init__(self, lines: Sequence[Line], form: Form) -> None:
        self.lines, self.form = lines, form
        self.references = [form.read(line["reference"]) for line in lines]
        self.prompts = [line["prompt"] for line in lines]
        self.answers = [form.read(line["answer"]) for line in lines]

    def marks(self, answers: Sequence[Said] | None = None) -> Marks:
        """Of these answers; default: the model's."""
        return marks(self.references, answers or self.answers, self.prompts, self.form.labels is not None)

    @property
    def groups(self) -> list[str]:
        return sorted({line["group"] for line in self.lines} - {None})

    def rows_of(self, group: str) -> np.ndarray[Any, np.dtype[np.int64]]:
        return np.flatnonzero(np.array([line["group"] == group for line in self.lines]))


def of(judged: Judged, trained: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Scores with 95 % intervals. `trained`: prompt and reference of training rows, for the baselines."""
    ours = judged.marks()
    out: dict[str, Any] = {
        "rows": len(judged.lines),
        "labels": judged.form.labels,
        "mark": judged.form.mark,
        "scores": plain(with_intervals(ours)),
        "by_group": {
            group: {"rows": len(rows), **plain(with_intervals(ours.of(rows)))}
            for group in judged.groups
            for rows in [judged.rows_of(group)]
        },
        "by_label": _by_label(judged, ours),
        "parse_failures": sum(not said.parsed for said in judged.answers),
        "not_ended": sum(not line["ended"] and line["tokens"] > 0 for line in judged.lines),
        "references": plain(with_intervals(judged.marks(judged.references))),
        "bootstrap": {"resamples": len(resampled(len(judged.lines))), "seed": SEED, "interval": 0.95},
    }
    return {**out, **_beside(judged, trained)} if trained else {**out, "baselines": {}, "nearest": None}


def _by_label(judged: Judged, ours: Marks) -> dict[str, Any]:
    names = sorted(set().union(*(said.labels for said in (*judged.references, *judged.answers))))
    counts = zip(ours.hit.sum(0), ours.false.sum(0), ours.missed.sum(0), strict=True)
    values = zip(names, f1_by_label(ours), counts, strict=True)
    return {
        name: {"f1": float(f1), "hit": int(hit), "false": int(false), "missed": int(missed)}
        for name, f1, (hit, false, missed) in values
    }


def _beside(judged: Judged, trained: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Baselines, and how near the training comes to the rows."""
    said = [judged.form.read(reference) for _, reference in trained]
    neighbours = list(nearest(judged.prompts, [prompt for prompt, _ in trained]))
    labels = sorted(set().union(*(one.labels for one in said)))
    found = baselines(labels if judged.form.labels else [], said, neighbours)
    similar = np.array([one.similarity for one in neighbours])
    closest = int(similar.argmax())
    known = {prompt for prompt, _ in trained}
    return {
        "baselines": {
            name: {"what": what, **plain(with_intervals(judged.marks(answers)))}
            for name, (answers, what) in found.items()
        },
        "nearest": {
            "training_rows": len(trained),
            "median": float(np.median(similar)),
            "largest": float(similar[closest]),
            "of": judged.lines[closest]["id"],
            "same_prompt": sum(prompt in known for prompt in judged.prompts),
        },
    }


def plain(scores: dict[str, Score]) -> dict[str, Any]:
    """As JSON has it, in the order in which people read it."""
    return {name: scores[name]._asdict() for name in METRICS if name in scores}
