"""Answers for human raters, who must not know whose they are: a folder to hand out, and its key beside it."""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from durable import write_atomic
from settings import ConfigError
from trainer.evaluate.metrics import SEED

_README = """\
# Rate these answers

Each `case-NN.md` holds a prompt and {answers} answers to it, in an order that was drawn by lot for each case. Read the
prompt, then give every answer three marks from 1 (useless) to 5 (could be sent as it is) in `ratings.csv`:

- correct: it finds what is there, and nothing that is not there
- complete: figures, legal basis, measure and deadline, as far as the case asks for them
- usable: wording that a colleague would send on

Work alone, and finish a case before the next. Who wrote what, the person who gave you this folder knows.
"""


class Answered(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def lines(self) -> list[dict[str, Any]]: ...


def write(sides: Sequence[Answered], count: int, beside: Path) -> tuple[Path, Path]:
    """The folder for the raters, and the file that says which answer is whose, in the folder `beside`. The same seed
    draws the same cases and orders. Raises ConfigError."""
    rows = len(sides[0].lines)
    if not 1 <= count <= rows:
        raise ConfigError(f"--blind {count}: the runs have {rows:,} rows in common: 1 to {rows}")
    draw = random.Random(SEED)
    chosen = sorted(draw.sample(range(rows), count))
    folder, key = _free(beside)
    folder.mkdir(parents=True)
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(sides)]
    ratings, whose = [["case", "answer", "correct", "complete", "usable"]], {}
    for number, row in enumerate(chosen, 1):
        case = f"case-{number:0{len(str(count))}d}"
        order = draw.sample(list(sides), len(sides))
        write_atomic(folder / f"{case}.md", _case(case, [side.lines[row] for side in order], letters))
        whose[case] = {"id": sides[0].lines[row]["id"], **{x: s.name for x, s in zip(letters, order, strict=True)}}
        ratings += [[case, letter, "", "", ""] for letter in letters]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(ratings)
    write_atomic(folder / "ratings.csv", text.getvalue())
    write_atomic(folder / "README.md", _README.format(answers=len(sides)))
    write_atomic(key, json.dumps({"seed": SEED, "cases": whose}, indent=2) + "\n")
    return folder, key


def _free(beside: Path) -> tuple[Path, Path]:
    """A new folder: what raters have written stays."""
    number = 1
    while (folder := beside / f"blind-{number}").exists() or (key := beside / f"blind-{number}-key.json").exists():
        number += 1
    return folder, key


def _case(case: str, lines: Sequence[dict[str, Any]], letters: str) -> str:
    parts = [f"# {case}", "## Prompt", _quoted(lines[0]["prompt"])]
    for letter, line in zip(letters, lines, strict=True):
        parts += [f"## Answer {letter}", _quoted(line["answer"])]
    return "\n\n".join(parts) + "\n"


def _quoted(text: str) -> str:
    """As it is, whatever marks of Markdown it has."""
    fence = "`" * 3
    while fence in text:
        fence += "`"
    return f"{fence}\n{text.strip() or '(nothing)'}\n{fence}"
