"""Slurm's node lists (`a[1-2,05]b[3-4],x`) without Slurm: compute nodes and containers may lack scontrol."""

from __future__ import annotations

import re
from itertools import product

from slurm.errors import SlurmError

_BRACKETS = re.compile(r"\[([^\[\]]*)\]")


def expand(text: str) -> list[str]:
    """Host names in Slurm's own order, leading zeros kept. Raises SlurmError for what is not a node list."""
    return [name for part in _split(text) for name in _expand_one(part)]


def _split(text: str) -> list[str]:
    """Parts between the commas that stand outside brackets."""
    parts, depth, start = [], 0, 0
    for index, char in enumerate(text):
        depth += (char == "[") - (char == "]")
        if depth not in (0, 1):
            raise SlurmError(f"node list '{text}': brackets do not match")
        if char == "," and depth == 0:
            parts.append(text[start:index])
            start = index + 1
    if depth:
        raise SlurmError(f"node list '{text}': brackets do not match")
    return [part for part in [*parts, text[start:]] if part]


def _expand_one(part: str) -> list[str]:
    pieces = _BRACKETS.split(part)  # text, ranges, text, ranges, ..., text
    choices = [_ranges(piece, part) if index % 2 else [piece] for index, piece in enumerate(pieces)]
    found = ["".join(names) for names in product(*choices)]
    for name in found:  # they become words of commands, and lines of the hostfile
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
            raise SlurmError(f"node list '{part}': {name!r} is no name of a host")
    return found


def _ranges(text: str, part: str) -> list[str]:
    numbers = []
    for item in text.split(","):
        first, dash, last = item.partition("-")
        last = last if dash else first
        if not (first.isascii() and first.isdigit() and last.isascii() and last.isdigit()) or int(last) < int(first):
            raise SlurmError(f"node list '{part}': '{item}' is not a range of numbers")
        numbers += [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    return numbers
