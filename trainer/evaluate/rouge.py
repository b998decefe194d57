"""ROUGE-L of two texts, as the package rouge-score computes it without a stemmer, and without its dependencies."""

from __future__ import annotations

import re

_OTHER = re.compile(r"[^a-z0-9]+")


def rouge_l(reference: str, answer: str) -> float:
    """F-measure of the longest common subsequence of words; 0 where one text has none."""
    theirs, ours = words(reference), words(answer)
    if not theirs or not ours:
        return 0.0
    common = longest_common(theirs, ours)
    precision, recall = common / len(ours), common / len(theirs)
    return 2 * precision * recall / (precision + recall) if common else 0.0


def words(text: str) -> list[str]:
    """ASCII letters and digits; what else there is parts words."""
    return _OTHER.sub(" ", text.lower()).split()


def longest_common(left: list[str], right: list[str]) -> int:
    """Length of the longest common subsequence, by rows of the table as bits of an integer (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for index, word in enumerate(left):
        places[word] = places.get(word, 0) | 1 << index
    every = row = (1 << len(left)) - 1
    for word in right:
        matches = row & places.get(word, 0)
        row = (row + matches | row - matches) & every
    return len(left) - row.bit_count()
