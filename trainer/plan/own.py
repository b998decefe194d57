"""What share of the GPU's peak the user's own runs have reached: better than any table. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain, islice
from pathlib import Path
from statistics import median
from typing import Any

from durable import read_tail
from settings import ConfigError, read_yaml
from trainer import config
from trainer.plan import batch_layout
from trainer.plan.architecture import Architecture
from trainer.plan.devices import Device, Reached, kind_of
from trainer.plan.time import mfu_of
from trainer.records import events
from trainer.schema import TrainConfig

_RUNS = 20  # the newest ones
_TAIL, _LONG_TAIL = 1 << 16, 1 << 22  # bytes of their events: the last hundred steps and more; some ten thousand
_FIRST = 100  # lines before which a run has told its device
FEW = 5  # steps, of which a median says little


def reached(runs: Path, settings: TrainConfig, model: Architecture, device: Device) -> Reached | None:
    """By the newest run that trained this model alike, on such GPUs: from its steps' seconds as the plan reckons them,
    as it would be with nothing computed again. One on a GPU that is not known tells no MFU, and is passed over."""
    files = sorted(runs.glob(f"*/{events.NAME}"), key=lambda path: path.stat().st_mtime, reverse=True)
    for file in files[:_RUNS]:
        try:
            theirs = config.resolve(read_yaml(file.parent / "config.yaml"), str(file.parent))
        except (ConfigError, OSError):
            continue
        if _what_counts(theirs) != _what_counts(settings):
            continue
        steps = [event for event in read_tail(file, _TAIL)[0] if event.get("event") == "step" and "mfu" in event]
        begun = _resumed(file, steps[-1].get("epoch")) if steps else None
        if begun is None or kind_of(str(begun.get("device"))) != device.name:
            continue
        if len(found := [step for step in steps if step.get("epoch") == begun["epoch"]]) >= FEW:
            seconds = median(step["seconds"] + step.get("data_wait_seconds", 0.0) for step in found)
            layout = batch_layout(theirs.train, begun["world_size"])
            mfu = mfu_of(seconds, model, theirs, layout, begun["local_world_size"], device)
            source = f"median of the last {len(found)} steps of your run {file.parent.name}"
            return Reached("this site", model.active / 1e9, mfu, False, source, own=True) if mfu else None
    return None


def _what_counts(settings: TrainConfig) -> tuple[Any, ...]:
    """What must be the same for one run's speed to be another's: but for what is computed again, which is reckoned."""
    train, engine = settings.train, settings.engine
    passes = train.bf16_passes, train.activation_offload, settings.lora is not None
    return settings.model.path, settings.model.config, type(engine), engine.offloads, passes


def _resumed(file: Path, epoch: Any) -> dict[str, Any] | None:
    """How an attempt began, as far as its run's end and begin tell."""
    tails = (event for size in (_TAIL, _LONG_TAIL) for event in read_tail(file, size)[0])
    begun = (event for event in chain(tails, _first_events(file)) if event.get("event") == "resume")
    return next((event for event in begun if event.get("epoch") == epoch and "world_size" in event), None)


def _first_events(file: Path) -> Iterator[dict[str, Any]]:
    with open(file, encoding="utf-8") as lines, suppress(ValueError):  # the last one may be torn
        yield from map(json.loads, islice(lines, _FIRST))
