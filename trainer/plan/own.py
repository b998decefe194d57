"""What share of the GPU's peak the user's own runs have reached: better than any table. Torch-free."""

from __future__ import annotations

from pathlib import Path
from statistics import median

from durable import read_tail
from settings import ConfigError, read_yaml
from trainer import config
from trainer.plan.devices import Reached
from trainer.plan.time import again
from trainer.records import events
from trainer.schema import TrainConfig

_RUNS = 20  # the newest ones
_TAIL = 1 << 16  # bytes of their events: the last hundred steps and more
FEW = 5  # steps, of which a median says little


def reached(runs: Path, settings: TrainConfig, billions: float) -> Reached | None:
    """By the newest run of the same model and engine that has told its MFU (trainer/records/throughput.py does on a GPU
    that it knows), as it would be with nothing computed again."""
    files = sorted(runs.glob(f"*/{events.NAME}"), key=lambda path: path.stat().st_mtime, reverse=True)
    for file in files[:_RUNS]:
        try:
            theirs = config.resolve(read_yaml(file.parent / "config.yaml"), str(file.parent))
        except (ConfigError, OSError):
            continue
        alike = theirs.model.path == settings.model.path and theirs.model.config == settings.model.config
        if not alike or type(theirs.engine) is not type(settings.engine):
            continue
        steps = (event for event in read_tail(file, _TAIL)[0] if event.get("event") == "step")
        if len(found := [float(step["mfu"]) for step in steps if "mfu" in step]) >= FEW:
            source = f"median of the last {len(found)} steps of your run {file.parent.name}"
            return Reached("this site", billions, median(found) * again(theirs), False, source, own=True)
    return None
