"""What an answer says: its labels, the text that is judged, and the figures in it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import NamedTuple

from settings import ConfigError

LABELS = "violations"
"""Field of the JSON object in an answer's first line, by default."""
MARK = "Directive:"
"""What the judged text stands behind, by default."""

_FIGURE = re.compile(r"(?<![A-Za-z_\d.,])\d+(?:[.,]\d+)*(?![A-Za-z_\d]|[.,]\d)")
"""No part of a name, nor of another number: neither the 1 of CET1 is one, nor that of 1.5k."""
_THOUSANDS = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?")


class Said(NamedTuple):
    labels: frozenset[str]
    text: str
    """What is judged as text."""
    parsed: bool = True
    """False: the first line holds no labels, and it counts as if it had none."""


class Form(NamedTuple):
    """What a task's answers look like."""

    labels: str | None
    """Field of the first line's JSON object; None: answers are plain text."""
    mark: str | None
    """What the judged text stands behind; None: all of the text is judged."""

    def read(self, answer: str) -> Said:
        text = answer.strip()
        labels: frozenset[str] | None = frozenset()
        if self.labels is not None:
            first, _, rest = text.partition("\n")
            labels = _labels(first, self.labels)
            text = text if labels is None else rest
        if self.mark is not None:
            text = text.partition(self.mark)[2]
        return Said(labels or frozenset(), text.strip(), labels is not None)


def form_of(references: Mapping[str, str], field: str, mark: str) -> Form:
    """The form that all references, by id, share. Raises ConfigError where only some of them have labels."""
    unlabelled = [id for id, text in references.items() if _labels(text.strip().partition("\n")[0], field) is None]
    if 0 < len(unlabelled) < len(references):
        raise ConfigError(
            f"{len(unlabelled):,} of {len(references):,} references have no labels, {unlabelled[0]} the first: "
            f'each begins with a line such as {{"{field}": ["A", "B"]}}; another field: --labels FIELD'
        )
    marked = bool(mark) and all(mark in text for text in references.values())
    return Form(None if unlabelled else field, mark if marked else None)


def _labels(line: str, field: str) -> frozenset[str] | None:
    try:
        found = json.loads(line)[field]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if not isinstance(found, list) or not all(isinstance(label, str) for label in found):
        return None
    return frozenset(found)


def figures(text: str) -> list[str]:
    """The numbers of a text, each in one way of writing: 4.10 and 4.1, or 1,250,000 and 1250000, are the same."""
    return [_plain(found) for found in _FIGURE.findall(text)]


def _plain(figure: str) -> str:
    digits = figure.replace(",", "" if _THOUSANDS.fullmatch(figure) else ".")
    if digits.count(".") > 1:  # a date, a section's number
        return digits
    return f"{Decimal(digits).normalize():f}"
