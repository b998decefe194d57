"""Runs beside each other on the same rows: `python -m trainer.evaluate.compare RUN_DIR RUN_DIR ...`, without torch.

What differs between two runs is tested row by row (paired bootstrap), so that easy and hard rows weigh for both alike.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

from rich.console import Console

from durable import as_open_as
from settings import ConfigError
from trainer import config, exits
from trainer.evaluate import blind, history, table
from trainer.evaluate.folder import Folder, called
from trainer.evaluate.metrics import Marks, Score, differences
from trainer.evaluate.scores import Judged, plain
from trainer.evaluate.spoken import Form
from trainer.evaluate.verdict import verdict
from trainer.schema import TrainConfig


class Side:
    """A run with its finished evaluation."""

    def __init__(self, run_dir: Path, name: str) -> None:
        """Raises ConfigError."""
        folder = Folder(run_dir / "evaluation" / name)
        scores = folder.scores
        if scores is None:
            raise ConfigError(
                f"{run_dir.name} has no finished evaluation {name}: launch.py evaluate {run_dir.name}; there are: "
                f"{', '.join(finished(run_dir)) or 'none'}"
            )
        self.name, self.run_dir, self.scores = run_dir.name, run_dir, scores
        self.lines = list(folder.answers().values())

    @property
    def data(self) -> dict[str, Any]:
        return dict(self.scores["about"]["data"])

    @property
    def read_by(self) -> str:
        return f"--labels {self.scores['labels']} --mark {self.scores['mark']}"

    @cached_property
    def settings(self) -> TrainConfig:
        return config.read(self.run_dir / "config.yaml")

    @property
    def method(self) -> str:
        lora = self.settings.lora
        return f"LoRA r={lora.r}" if lora else "full"

    def marks(self, form: Form) -> Marks:
        return Judged(self.lines, form).marks()

    def as_json(self) -> dict[str, Any]:
        about, cost = self.scores["about"], history.cost(self.run_dir)
        return {
            "run": self.name,
            "method": self.method,
            "step": about["step"],
            "lr": self.settings.optim.peak,
            "seed": self.settings.train.seed,
            "scores": self.scores["scores"],
            "parse_failures": self.scores["parse_failures"],
            "cost": {**cost._asdict(), "unit": cost.unit} if cost else None,
            "losses": self.scores["losses"],
        }


def finished(run_dir: Path) -> list[str]:
    """Names of the evaluations of a run that have come to their end."""
    return sorted(path.parent.name for path in run_dir.glob("evaluation/*/scores.json"))


def sides(run_dirs: Sequence[Path], name: str | None) -> list[Side]:
    """Raises ConfigError: also where the runs answered other rows, or had other room for their answers."""
    common = sorted(set.intersection(*(set(finished(run_dir)) for run_dir in run_dirs)))
    if name is None and len(common) > 1:
        raise ConfigError(f"the runs have several evaluations in common: {', '.join(common)}: name one: --data NAME")
    if name is None and not common:
        have = "; ".join(f"{path.name}: {', '.join(finished(path)) or 'none'}" for path in run_dirs)
        raise ConfigError(
            f"the runs have no finished evaluation in common ({have}): launch.py evaluate RUN --data FILE"
        )
    found = [Side(run_dir, called(name) if name else common[0]) for run_dir in run_dirs]
    for one in found[1:]:
        if one.data["sha256"] != found[0].data["sha256"]:
            shown = " and ".join(
                f"{side.name} {side.data['rows']:,} rows of {side.data['file']} ({side.data['sha256'][:8]})"
                for side in (found[0], one)
            )
            raise ConfigError(f"the runs were evaluated on different rows, which no difference survives: {shown}")
        if one.read_by != found[0].read_by:
            shown = " and ".join(f"{side.name} {side.read_by}" for side in (found[0], one))
            raise ConfigError(f"the answers were read in different ways: {shown}: launch.py evaluate one of them again")
    return found


def compared(found: Sequence[Side]) -> dict[str, Any]:
    """Each run, and of every two the first minus the second."""
    first = found[0].scores
    form = Form(first["labels"], first["mark"])
    judged = [(side, side.marks(form)) for side in found]
    pairs = [_pair(a, b, differences(ours, theirs)) for (a, ours), (b, theirs) in combinations(judged, 2)]
    return {"data": found[0].data, "runs": [side.as_json() for side in found], "pairs": pairs}


def _pair(a: Side, b: Side, gaps: dict[str, Score]) -> dict[str, Any]:
    differs = config.differences(config.exact_part(a.settings), config.exact_part(b.settings))
    pair = {
        "runs": [a.name, b.name],
        "differences": plain(gaps),
        "settings": {key: [was, now] for key, was, now in differs},
        "room": [side.scores["about"]["new_tokens"] for side in (a, b)],
    }
    return {**pair, "verdict": verdict(pair, a, b)}


def main(argv: list[str]) -> int:
    out = argparse.ArgumentParser(prog="python -m trainer.evaluate.compare", description=__doc__, allow_abbrev=False)
    out.add_argument("run_dirs", type=Path, nargs="+", metavar="RUN_DIR")
    out.add_argument("--data", help="name of the evaluation; default: the one that all runs have")
    out.add_argument("--blind", type=int, help="a folder of so many rows for human raters, without names")
    out.add_argument("--json", action="store_true")
    args = out.parse_args(argv)
    try:
        found = sides([path.resolve() for path in args.run_dirs], args.data)
        result = compared(found)
        if args.blind is not None:
            with as_open_as(found[0].run_dir):
                result["blind"] = list(map(str, blind.write(found, args.blind, found[0].run_dir.parent)))
    except (ConfigError, OSError) as error:
        print(f"outlast: {error}", file=sys.stderr)
        return exits.CONFIG if isinstance(error, ConfigError) else exits.CRASHED
    if args.json:
        print(json.dumps(result, indent=2))
    else:
        table.show_compared(result, Console())
    return exits.DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
