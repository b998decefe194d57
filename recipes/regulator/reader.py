"""The rule reader: a plain program that does what the model shall learn. It sees reports alone, never their labels.

    python -m recipes.regulator.reader FILE [FILE ...]

An instance (.xml), a text (.txt), or rows of prompts (.jsonl): for these it says how well it does. Exit code 78: a
report was refused; 1: it found something else than the rows say.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from recipes.regulator import text, xbrl
from recipes.regulator.report import ReportError
from recipes.regulator.rules import judge


def labels(row: dict[str, Any]) -> list[str]:
    """What the first line of a row's completion says."""
    broken: list[str] = json.loads(row["completion"].partition("\n")[0])["violations"]
    return broken


def broken_in(file: Path) -> list[str]:
    """Of an instance or a text. Raises ReportError."""
    if file.suffix == ".xml":
        return judge(xbrl.read(file.read_bytes()))
    try:
        return judge(text.read(file.read_text(encoding="utf-8")))
    except UnicodeDecodeError:
        raise ReportError("no text: it is not UTF-8") from None


def f1(file: Path) -> float:
    """Micro F1 of what is read in the prompts of a file."""
    hits = found = there = 0
    with file.open(encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            if not {"prompt", "completion"} <= row.keys():
                raise ReportError("its rows have no prompt and completion")
            read, said = set(judge(text.read(row["prompt"]))), set(labels(row))
            hits, found, there = hits + len(read & said), found + len(read), there + len(said)
    return 2 * hits / (found + there) if found + there else 1.0


def main(files: list[str]) -> int:
    """Exit code."""
    code = 0
    for file in map(Path, files):
        try:
            if file.suffix == ".jsonl":
                score = f1(file)
                print(f"{file}: F1 {score:.4f}")
                code = code or int(score < 1)
            else:
                print(f"{file}: {', '.join(broken_in(file)) or 'nothing is broken'}")
        except (OSError, ReportError) as error:
            print(f"{file}: refused: {error}", file=sys.stderr)
            code = 78
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
