"""`python -m benchmarks.page`: docs/benchmarks.md and the README's table, from the newest results of each benchmark."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.__main__ import BENCHMARKS, LEGEND, RESULTS, section
from benchmarks.rows import OPEN, Row, verdict
from docs.markdown import filled, table
from durable import write_atomic

ROOT = Path(__file__).parent.parent
PAGE, README = ROOT / "docs" / "benchmarks.md", ROOT / "README.md"
BEGIN, END = "<!-- benchmarks: python -m benchmarks.page -->\n", "<!-- end of benchmarks -->\n"
HEAD = f"""\
# What was measured

You will find here every figure of the newest run of each benchmark, beside its peers and its goal, and why a goal is
missed where one is. `make bench BENCH="--only NAME"` measures one again, `--quick` in fewer rounds. {LEGEND}
"""


class Block(NamedTuple):
    """One benchmark's."""

    name: str
    date: str
    record: dict[str, Any]

    @property
    def rows(self) -> list[Row]:
        return [Row(**row) for row in self.record["rows"]]


def newest() -> Iterator[Block]:
    records = {file.stem: json.loads(file.read_text()) for file in sorted(RESULTS.glob("????-??-??.json"))}
    for name in BENCHMARKS:
        if dates := [date for date, record in records.items() if name in record]:
            yield Block(name, dates[-1], records[dates[-1]][name])


def page() -> str:
    return HEAD + "".join(_dated(block) for block in newest())


def _dated(block: Block) -> str:
    title, text = section(block.name, block.record).lstrip().split("\n", 1)
    return f'\n{title}\n\nOn {block.date}: `make bench BENCH="--only {block.name}{_quick(block)}"`\n{text}'


def _quick(block: Block) -> str:
    return " --quick" * block.record["quick"]


def summary() -> str:
    """A line a benchmark: how many of its goals are met, and where it stands why others are not."""
    lines = []
    for block in newest():
        judged = [row for row in block.rows if row.goal]
        missed = [row for row in judged if verdict(row) in OPEN]
        told = f"[{len(missed)}, and why](docs/benchmarks.md#{block.name})" if missed else ""
        about = " ".join((sys.modules[BENCHMARKS[block.name].__module__].__doc__ or "").split())
        command = f"`--only {block.name}{_quick(block)}`"
        lines.append(
            (
                about.split(": ")[0].split(". ")[0].rstrip("."),
                f"{command}, {block.date}",
                f"{len(judged) - len(missed)} of {len(judged)}",
                told,
            )
        )
    return table(("what", "`make bench BENCH=...`", "goals met", "missed"), lines)


def readme(text: str) -> str:
    """With the table of now."""
    return filled(text, BEGIN, END, f"\n{summary()}\n")


def main() -> None:
    write_atomic(PAGE, page())
    write_atomic(README, readme(README.read_text()))


if __name__ == "__main__":
    main()
