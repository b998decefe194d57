"""What scores without a model: so much of a score is no merit of the training."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from trainer.evaluate.rouge import rouge_l
from trainer.evaluate.spoken import Said

LARGEST = 20_000
"""Rows of the training data that are looked at, from all over it: at most twice as many."""
_FIXED_AMONG = 100
_WORD = re.compile(r"\w+(?:[.,]\w+)*")
_COMMON = 0.5
"""Words that more than this share of the texts have tell nothing."""


class Nearest(NamedTuple):
    row: int
    """Of the training rows."""
    similarity: float
    """Cosine of both texts' words, weighted by how rare each is (TF-IDF); 1: the same words."""


def baselines(
    labels: Sequence[str], trained: Sequence[Said], neighbours: Sequence[Nearest]
) -> Mapping[str, tuple[list[Said], str]]:
    """The answers of each to all rows, and what it is. `labels`: those of the training; none where the task has none.
    `neighbours`: of each row that is evaluated."""
    rows, fixed = len(neighbours), typical(trained)
    found = {"nearest": ([trained[one.row] for one in neighbours], "the answer to the most similar training prompt")}
    if not labels:
        return {**found, "fixed": ([Said(frozenset(), fixed)] * rows, "the most typical training text")}
    clean = Counter(said.text for said in trained if not said.labels).most_common(1)
    said_of_none = clean[0][0] if clean else fixed
    usual = Counter(tuple(sorted(said.labels)) for said in trained).most_common(1)[0][0]
    common = Counter(said.text for said in trained if tuple(sorted(said.labels)) == usual).most_common(1)[0][0]
    return {
        "none": ([Said(frozenset(), said_of_none)] * rows, "no label, and the text that most often goes with none"),
        "all": ([Said(frozenset(labels), fixed)] * rows, "every label, and the most typical text"),
        "majority": ([Said(frozenset(usual), common)] * rows, "the most frequent labels together, and their text"),
        **found,
        "fixed": ([Said(frozenset(), fixed)] * rows, "no label, and the most typical text of rows with labels"),
    }


def typical(trained: Sequence[Said]) -> str:
    """Of the texts, where there are labels of those with some, the one that is most like the others by ROUGE-L."""
    texts = sorted({said.text for said in trained if said.labels} or {said.text for said in trained})
    some = [texts[len(texts) * i // _FIXED_AMONG] for i in range(_FIXED_AMONG)] if len(texts) > _FIXED_AMONG else texts
    return max(some, key=lambda text: sum(rouge_l(other, text) for other in some), default="")


# --- the nearest training prompt ------------------------------------------------------------------------


def nearest(prompts: Sequence[str], trained: Sequence[str]) -> Iterator[Nearest]:
    """For each prompt the most similar of the trained ones."""
    index = _Index(trained)
    for prompt in prompts:
        similar = index.similarities(prompt)
        row = int(similar.argmax())
        yield Nearest(row, float(similar[row]))


class _Index:
    def __init__(self, texts: Sequence[str]) -> None:
        counts = [Counter(_words(text)) for text in texts]
        having = Counter(word for count in counts for word in count)
        # One more than there are: also a text of its own alone has words that tell something.
        self._rarity = {w: math.log((1 + len(texts)) / n) for w, n in having.items() if _tells(n, len(texts))}
        places: dict[str, list[tuple[int, float]]] = defaultdict(list)
        for number, count in enumerate(counts):
            for word, weight in self._weights(count).items():
                places[word].append((number, weight))
        self._places = {
            word: (np.array([row for row, _ in found]), np.array([weight for _, weight in found]))
            for word, found in places.items()
        }
        self._size = len(texts)

    def similarities(self, text: str) -> npt.NDArray[np.float64]:
        """(texts,)"""
        out = np.zeros(self._size)
        for word, weight in self._weights(Counter(_words(text))).items():
            if word in self._places:
                rows, weights = self._places[word]
                out[rows] += weight * weights
        return out

    def _weights(self, count: Counter[str]) -> dict[str, float]:
        """Of length 1."""
        weights = {word: n * self._rarity.get(word, 0.0) for word, n in count.items()}
        norm = math.sqrt(sum(weight * weight for weight in weights.values()))
        return {word: weight / norm for word, weight in weights.items() if weight} if norm else {}


def _tells(having: int, texts: int) -> bool:
    return having <= _COMMON * texts or texts < 4


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())
