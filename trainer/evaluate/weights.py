"""Which weights are evaluated: what users of the run's export get."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from settings import ConfigError, read_json
from trainer.checkpoint import Point, folder_name
from trainer.checkpoint.lineage import checkpoints_in_line

_OWN = re.compile(r"export(-step-\d+)?")


class Weights(NamedTuple):
    point: Point
    checkpoint: str
    folder: Path | None
    """Where an export of it lies already."""


def choose(run_dir: Path, step: int | None) -> Weights:
    """Those after a step, by default the newest: an export of them, else their checkpoint. Raises ConfigError."""
    exports = {point: folder for folder in run_dir.glob("export*") if (point := _exported(folder)) is not None}
    there = set(checkpoints_in_line(run_dir)) | exports.keys()
    chosen = max((point for point in there if step in (None, point.step)), default=None)
    if chosen is None:
        steps = ", ".join(str(point.step) for point in sorted(there, reverse=True)) or "none: train it first"
        raise ConfigError(f"{run_dir.name} has no weights{f' of step {step}' * (step is not None)}; steps: {steps}")
    return Weights(chosen, folder_name(chosen), exports.get(chosen))


def _exported(folder: Path) -> Point | None:
    """Which weights an export in the run's own precision has."""
    file = folder / "provenance.json"
    if not (_OWN.fullmatch(folder.name) and file.is_file()):
        return None
    about = read_json(file)
    return Point(about["steps"], about["attempts"])
