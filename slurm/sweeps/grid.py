"""The words of a sweep: keys with several values, every combination of them, and what the runs are called."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from settings import ConfigError, parse_yaml

LONGEST_NAME = 60
"""Of a run: its folder, its job and many lines bear it."""


class Axis(NamedTuple):
    key: str
    texts: list[str]
    """Its values as they were typed."""


class Combination(NamedTuple):
    name: str
    """What tells it from the others of its sweep: lr_2e-5-seed_1."""
    words: list[str]
    """`key=value`, one for each axis."""
    values: dict[str, Any]


def axes(words: Iterable[str]) -> tuple[list[Axis], list[str]]:
    """Of `key=value` words those with several values, and the others, which hold for all. Raises ConfigError."""
    found, others = [], []
    for word in words:
        key, _, text = word.partition("=")
        texts = [] if word.startswith(("job.", "job=")) else pieces(text)  # a list of nodes is one value
        if len(texts) > 1:
            found.append(_axis(key, texts))
        else:
            others.append(word)
    if not found:
        raise ConfigError("a sweep takes a key with several values: optim.lr=1e-5,2e-5,5e-5")
    for key, count in Counter(axis.key for axis in found).items():
        if count > 1:
            raise ConfigError(f"{key} stands twice: give all of its values at once: {key}=A,B,C")
    return found, others


def pieces(text: str) -> list[str]:
    """Parts between the commas that stand outside quotes and brackets: `[a,b],[c]` are two lists."""
    out, depth, quote = [""], 0, ""
    for char in text:
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        else:
            depth += (char in "[{(") - (char in "]})")
        if char == "," and depth <= 0 and not quote:
            out.append("")
        else:
            out[-1] += char
    return out


def _axis(key: str, texts: list[str]) -> Axis:
    values = [parse_yaml(text, f"{key}={text}") for text in texts]
    for index, (text, value) in enumerate(zip(texts, values, strict=True)):
        if not text.strip():
            raise ConfigError(f"{key}={','.join(texts)}: a value is empty; one that has a comma in it: {key}='\"A,B\"'")
        if value in values[:index]:
            raise ConfigError(f"{key}={','.join(texts)}: {text} stands twice")
    return Axis(key, texts)


def combinations(found: Sequence[Axis]) -> list[Combination]:
    """Every combination, the last axis running fastest."""
    short = _short([axis.key for axis in found])
    out = []
    for texts in itertools.product(*(axis.texts for axis in found)):
        words = [f"{axis.key}={text}" for axis, text in zip(found, texts, strict=True)]
        values = {axis.key: parse_yaml(text, axis.key) for axis, text in zip(found, texts, strict=True)}
        parts = [f"{short[axis.key].replace('/', '-')}_{_slug(text)}" for axis, text in zip(found, texts, strict=True)]
        out.append(Combination("-".join(parts), words, values))
    return out


def _short(keys: Sequence[str]) -> dict[str, str]:
    """A key's last part, where no other key ends in it."""
    leaves = Counter(key.rpartition(".")[2] for key in keys)
    return {key: leaf if leaves[leaf := key.rpartition(".")[2]] == 1 else key for key in keys}


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.+-]+", "-", text).strip("-.") or "x"


def run_names(sweep: str, found: Sequence[Combination], first: int, taken: Iterable[str]) -> list[str]:
    """A name for each run, that no other has: by its values, else by its number, counted from `first`."""
    names = [f"{sweep}-{one.name}" for one in found]
    if len({*names, *taken}) == len(names) + len({*taken}) and max(map(len, names), default=0) <= LONGEST_NAME:
        return names
    return [f"{sweep}-{number:03d}" for number in range(first, first + len(found))]


def array(tasks: Sequence[int], parallel: int | None) -> str:
    """As sbatch takes it: `0-3,7%2`, so many at a time."""
    parts = []
    for _, group in itertools.groupby(enumerate(sorted(tasks)), key=lambda pair: pair[1] - pair[0]):
        numbers = [number for _, number in group]
        parts.append(f"{numbers[0]}-{numbers[-1]}" if len(numbers) > 1 else str(numbers[0]))
    return ",".join(parts) + (f"%{parallel}" if parallel is not None and parallel < len(tasks) else "")
