"""The case's data, from a seed: reports, what is to be written about them, their instances, language to read before.

    python -m recipes.regulator.data FOLDER [--train 6800] [--dev 400] [--test 1000] [--short] [--seed 1]

writes train.jsonl, dev.jsonl, test.jsonl (rows with prompt and completion), labels.jsonl (those of train.jsonl with the
labels alone to be written), language.jsonl (texts to read before),
instances/ (XBRL of the test reports) with their taxonomy, and general/ (text of another kind, and a tokenizer made from
it): the same bytes for the same seed. No institution, no date and no set of figures stands in two of the splits.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from durable import write_atomic
from recipes.regulator import bank, general, language, scenarios, taxonomy, text, wording, xbrl
from recipes.regulator.report import Report
from recipes.regulator.rules import judge

QUARTERS = {"train": (2014, 32), "dev": (2022, 4), "test": (2023, 8)}
"""Reference dates of each split: the first year, and how many quarters from there."""
A_BANK = {"train": 16, "dev": 2, "test": 4}
"""Reports of one institution, about."""


class Example(NamedTuple):
    row: dict[str, Any]
    report: Report


def main(argv: list[str]) -> int:
    """Exit code."""
    out = argparse.ArgumentParser(prog="python -m recipes.regulator.data", description=__doc__.split("\n")[0])
    out.add_argument("folder", type=Path, metavar="FOLDER")
    for split, count in (("train", 6800), ("dev", 400), ("test", 1000)):
        out.add_argument(f"--{split}", type=int, default=count, metavar="N", help=f"reports; default: {count}")
    out.add_argument("--language", type=int, metavar="N", help="texts to read before; default: twice --train")
    out.add_argument("--instances", type=int, default=500, metavar="N", help="of the test reports; default: 500")
    out.add_argument("--short", action="store_true", help="at most 300 tokens an example: for a small model")
    out.add_argument("--seed", type=int, default=1)
    out.add_argument("--reports-only", action="store_true", help="no general text (it takes a minute)")
    args = out.parse_args(argv)
    sizes = {split: getattr(args, split) for split in QUARTERS}
    texts = 2 * args.train if args.language is None else args.language
    made = make(args.folder, sizes, texts, args.instances, args.short, args.seed)
    if not args.reports_only:
        general.make(args.folder / "general")
    print(f"{args.folder}: " + ", ".join(f"{split} {len(examples):,}" for split, examples in made.items()))
    return 0


def make(
    folder: Path, sizes: dict[str, int], texts: int, instances: int, short: bool, seed: int
) -> dict[str, list[Example]]:
    """Writes all but the general text; what is there under these names is replaced."""
    names = iter(Random(f"{seed}/institutions").sample(range(10_000, 100_000), 60_000))
    seen: set[str] = set()
    made = {}
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in sizes.items():
        banks = [str(next(names)) for _ in range(max(1, -(-count // A_BANK[split])))]
        made[split] = list(examples(split, banks, count, short, seed, seen))
        _write_rows(folder / f"{split}.jsonl", [one.row for one in made[split]])
    _write_rows(folder / "labels.jsonl", list(labels_alone(made["train"])))
    readers = [str(next(names)) for _ in range(max(1, texts // A_BANK["train"]))]
    read = list(language.texts(Random(f"{seed}/language"), readers, dates("train"), texts, short))
    _write_rows(folder / "language.jsonl", [{"text": one} for one in read])
    shutil.rmtree(folder / "instances", ignore_errors=True)
    taxonomy.write(folder / "instances" / "taxonomy")
    for one in made["test"][:instances]:
        write_atomic(folder / "instances" / f"{one.row['id']}.xml", xbrl.write(one.report))
    return made


def examples(split: str, banks: list[str], count: int, short: bool, seed: int, seen: set[str]) -> Iterator[Example]:
    """Of banks at dates that are this split's own, each pair once. `seen`: figures that stand somewhere already."""
    rng = Random(f"{seed}/{split}")
    shown = text.short if short else text.whole
    of = {name: bank.institution(rng, name, short) for name in banks}
    pairs = rng.sample([(name, day) for name in banks for day in dates(split)], count)
    for number, (name, day) in enumerate(pairs, 1):
        prompt = ""
        while not prompt or prompt.partition("\n")[2] in seen:  # the first line says whose and when
            wanted = scenarios.wish(rng, short)
            report = scenarios.report(rng, wanted, of[name], day, short)
            prompt = shown(report)
        seen.add(prompt.partition("\n")[2])
        row = {
            "id": f"{split}-{number:06}",
            "prompt": prompt,
            "completion": wording.completion(rng, report, judge(report), short),
            "difficulty": wanted.difficulty,
            "institution": name,
            "date": str(day),
        }
        yield Example(row, report)


def labels_alone(examples: list[Example]) -> Iterator[dict[str, Any]]:
    """The same reports with nothing but the labels to be written: of a whole answer's tokens they are a tenth."""
    for one in examples:
        yield {**one.row, "completion": one.row["completion"].partition("\n")[0]}


def dates(split: str) -> list[date]:
    """Ends of quarters."""
    year, quarters = QUARTERS[split]
    return [date(year + (n + 1) // 4, (n + 1) % 4 * 3 + 1, 1) - timedelta(1) for n in range(quarters)]


def _write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
