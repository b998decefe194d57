"""What a model could know of the test set by heart: the nearest training report of each test report.

    python -m recipes.regulator.leaks FOLDER

Nearness: shared figures over all figures of both (Jaccard), a figure being a key or row with its value. Exit code 1: an
institution or a date stands in two splits, or a test report shares half of its figures with one of training.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter, defaultdict
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

SPLITS = ("train", "dev", "test")
_FIGURE = re.compile(r"(\S+=\S+|r\d+ .+ = \S+)")


class Nearest(NamedTuple):
    test: str
    train: str
    """Ids."""
    share: float


def figures(prompt: str) -> set[str]:
    """All but the first line's, which says whose and when."""
    return set(_FIGURE.findall(prompt.partition("\n")[2]))


def nearest(test: list[dict[str, Any]], train: list[dict[str, Any]]) -> list[Nearest]:
    """The nearest of training to each of the test, the nearest first."""
    known = [figures(row["prompt"]) for row in train]
    holders: dict[str, list[int]] = defaultdict(list)
    for number, there in enumerate(known):
        for figure in there:
            holders[figure].append(number)
    found = []
    for row in test:
        mine = figures(row["prompt"])
        shared = Counter(number for figure in mine for number in holders[figure])
        shares = {number: count / len(mine | known[number]) for number, count in shared.items()}
        best = max(shares, key=lambda number: (shares[number], -number), default=None)
        found.append(Nearest(row["id"], train[best]["id"] if best is not None else "", shares.get(best or 0, 0.0)))
    return sorted(found, key=lambda one: -one.share)


def splits(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The rows of each."""
    return {
        split: [json.loads(line) for line in (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]
        for split in SPLITS
    }


def shared(rows: dict[str, list[dict[str, Any]]]) -> dict[str, set[str]]:
    """Institutions, dates and prompts that stand in two splits."""
    return {key: common(rows, key) for key in ("institution", "date", "prompt")}


def common(rows: dict[str, list[dict[str, Any]]], key: str) -> set[str]:
    """What stands in two splits at least."""
    values = Counter(value for split in rows.values() for value in {row[key] for row in split})
    return {value for value, splits in values.items() if splits > 1}


def main(argv: list[str]) -> int:
    """Exit code."""
    if len(argv) != 1:
        print("usage: python -m recipes.regulator.leaks FOLDER", file=sys.stderr)
        return 2
    rows = splits(Path(argv[0]))
    both = shared(rows)
    print("in two splits: " + ", ".join(f"{len(values)} {key}s" for key, values in both.items()))
    found = nearest(rows["test"], rows["train"])
    shares = [one.share for one in found]
    print(f"nearest training report of {len(found):,} test reports: median {median(shares):.1%}, most {shares[0]:.1%}")
    for one in found[:5]:
        print(f"  {one.test}  {one.train}  {one.share:.1%}")
    return 1 if any(both.values()) or shares[0] >= 0.5 else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
