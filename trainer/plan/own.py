"""What share of the GPU's peak the user's own runs have reached: better than any table. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

from durable import read_tail
from settings import ConfigError, read_yaml
from trainer import config
from trainer.plan.devices import Reached, kind_of
from trainer.plan.time import again
from trainer.records import events
from trainer.schema import TrainConfig

_RUNS = 20  # the newest ones
_TAIL = 1 << 16  # bytes of their events: the last hundred steps and more
_FIRST = 100  # lines before which a run has told its device
FEW = 5  # steps, of which a median says little


def reached(runs: Path, settings: TrainConfig, billions: float, kind: str) -> Reached | None:
    """By the newest run of the same model and engine on such GPUs that has told its MFU (trainer/records/throughput.py
    does on one that it knows), as it would be with nothing computed again."""
    files = sorted(runs.glob(f"*/{events.NAME}"), key=lambda path: path.stat().st_mtime, reverse=True)
    for file in files[:_RUNS]:
        try:
            theirs = config.resolve(read_yaml(file.parent / "config.yaml"), str(file.parent))
        except (ConfigError, OSError):
            continue
        alike = theirs.model.path == settings.model.path and theirs.model.config == settings.model.config
        if not alike or type(theirs.engine) is not type(settings.engine) or _kind(file) != kind:
            continue
        steps = (event for event in read_tail(file, _TAIL)[0] if event.get("event") == "step")
        if len(found := [float(step["mfu"]) for step in steps if "mfu" in step]) >= FEW:
            source = f"median of the last {len(found)} steps of your run {file.parent.name}"
            return Reached("this site", billions, median(found) * again(theirs), False, source, own=True)
    return None


def _kind(file: Path) -> str | None:
    """Of the devices that a run has used last, as far as its end and its begin tell."""
    for told in (reversed(read_tail(file, _TAIL)[0]), _first_events(file)):
        for event in told:
            if event.get("event") == "resume":
                return kind_of(str(event.get("device")))
    return None


def _first_events(file: Path) -> Iterator[dict[str, Any]]:
    with open(file, encoding="utf-8") as lines, suppress(ValueError):  # the last one may be torn
        yield from map(json.loads, islice(lines, _FIRST))
