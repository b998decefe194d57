"""The judge from outside: Arelle validates the instances, and its formula engine says which rules each of them breaks.

    python -m recipes.regulator.confirm FOLDER [--limit N]

reads FOLDER/test.jsonl and FOLDER/instances; one process for all. Needs arelle-release; exit code 1: it does not agree.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from recipes.regulator.reader import labels


class Verdict(NamedTuple):
    errors: list[str]
    """Why it is no valid instance."""
    broken: list[str]
    """Codes of the rules whose formulas are not satisfied, sorted."""


class _Messages(logging.Handler):
    """What Arelle says of one instance."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[str] = []
        self.unsatisfied: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        code = getattr(record, "messageCode", "")
        if code == "formula:assertionUnsatisfied":
            assert isinstance(record.args, dict)
            self.unsatisfied.add(str(record.args["label"]).partition("_")[0])  # SUM_T1 is of the rule SUM
        elif record.levelno >= logging.WARNING:
            self.errors.append(f"{code}: {record.getMessage()}")


def verdicts(files: Iterable[Path]) -> Iterator[Verdict]:
    """Arelle's, of each instance, in order. Fetches nothing, and keeps nothing in the user's home."""
    from arelle.api.Session import Session
    from arelle.RuntimeOptions import RuntimeOptions

    with Session() as session, tempfile.TemporaryDirectory() as cache:
        messages = _Messages()
        for file in files:
            messages.errors, messages.unsatisfied = [], set()
            options = RuntimeOptions(
                entrypointFile=str(file.resolve()),
                validate=True,
                formulaAction="run",
                formulaUnsatisfiedAsser=True,
                internetConnectivity="offline",
                cacheDirectory=cache,
                disablePersistentConfig=True,
            )
            session.run(options, logHandler=messages)
            yield Verdict(messages.errors, sorted(messages.unsatisfied))


def main(argv: list[str]) -> int:
    """Exit code."""
    out = argparse.ArgumentParser(prog="python -m recipes.regulator.confirm", description=__doc__.split("\n")[0])
    out.add_argument("folder", type=Path, metavar="FOLDER", help="of the data")
    out.add_argument("--limit", type=int, metavar="N", help="the first N instances; default: all")
    args = out.parse_args(argv)
    rows = map(json.loads, (args.folder / "test.jsonl").read_text(encoding="utf-8").splitlines())
    there = [(args.folder / "instances" / f"{row['id']}.xml", row) for row in rows]
    chosen = [(file, row) for file, row in there if file.exists()][: args.limit]
    begin, valid, agreed = time.monotonic(), 0, 0
    for (file, row), verdict in zip(chosen, verdicts(file for file, _ in chosen), strict=True):
        valid += not verdict.errors
        agreed += verdict.broken == labels(row)
        if verdict.errors or verdict.broken != labels(row):
            print(f"{file.name}: {'; '.join(verdict.errors)} Arelle: {verdict.broken}, the label: {labels(row)}")
    print(
        f"{valid} of {len(chosen)} valid, {agreed} of {len(chosen)} labels confirmed, {time.monotonic() - begin:.1f} s"
    )
    return 0 if chosen and valid == agreed == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
