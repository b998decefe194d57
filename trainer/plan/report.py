"""A plan: whether a recipe fits, what it takes, and what would be better. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from settings import ConfigError, merge, parse_yaml
from trainer import config
from trainer.checkpoint.interval import duration
from trainer.engines.deepspeed import zero
from trainer.plan import layouts, own
from trainer.plan.architecture import Architecture
from trainer.plan.calibrated import device
from trainer.plan.devices import Device
from trainer.plan.layouts import Planned
from trainer.plan.length import Length, length
from trainer.plan.memory import checkpoint_bytes
from trainer.plan.model import model_of
from trainer.plan.time import Saving, Time, saving
from trainer.schema import TrainConfig

DEVICE = "h100-80"
"""What is planned for where nothing says which GPUs there are."""


Counted = Callable[[float, float], str | None]
"""What the site counts GPU-hours and node-hours as, in its own unit."""


@dataclass(frozen=True)
class Report:
    """What a plan says."""

    model: Architecture
    now: Planned
    length: Length | None
    better: list[Planned]
    """On the same GPUs, the fastest first."""
    smallest: Planned | None
    others: list[Planned]
    """The best on other kinds of GPUs."""
    assumed: list[str]
    """What nobody has said."""
    mem: str = ""
    """The job's memory of a node, as sbatch takes it."""
    counted: Counted | None = None

    @property
    def short(self) -> float:
        """Bytes of a node's memory that the job asks for too few; 0: none, or it is not said."""
        size = re.fullmatch(r"(\d+)([KMGT]?)B?", self.mem, re.IGNORECASE)
        asked = int(size[1]) << {"K": 10, "M": 20, "G": 30, "T": 40}[size[2].upper() or "M"] if size else 0
        return max(0.0, self.now.memory.node - asked) if asked else 0.0

    @property
    def units(self) -> str | None:
        """Of the site, that the run costs; None: it has none, or nobody knows how long the run is."""
        return self.counted(self.now.time.gpu_hours, self.now.time.node_hours) if self.counted and self.length else None

    @property
    def saving(self) -> Saving:
        return saving(self.now.settings, self.now.memory.checkpoint, self.now.time)

    @property
    def nearest(self) -> Planned | None:
        """What to take where this does not fit: on the same GPUs, else on the fewest."""
        return self.better[0] if self.better else self.smallest


def made(
    tree: dict[str, Any],
    job: Mapping[str, Any],
    source: str,
    gpus_of: str | None,
    examples: str | None,
    runs: Path,
    counted: Counted | None = None,
) -> Report:
    """Raises ConfigError."""
    nodes, gpus = int(job.get("nodes") or 1), int(job.get("gpus_per_node") or 8)
    assumed = [] if job.get("gpus_per_node") else ["8 GPUs a node (--gpus)"]
    if "model_type" in tree and "model" not in tree:  # a config.json alone
        tree, more = _recipe_of(tree, nodes * gpus)
        assumed += more
    kinds = [device(name, runs) for name in (gpus_of or DEVICE).split(",")]
    assumed += [] if gpus_of else [f"GPUs of the kind {DEVICE} (--gpus-of)"]
    settings = config.resolve(zero.with_batch({"name": "plan", **tree}, nodes * gpus), source)
    model = model_of(settings)
    kinds = [replace(kind, own=own.reached(runs, settings, model, kind)) for kind in kinds]
    known = length(settings, config.cache_folder(settings.data, runs / "plan"), examples)
    steps = known.steps if known else 1000
    now = layouts.planned(model, settings, nodes, gpus, kinds[0], steps)
    better = layouts.alternatives(model, settings, nodes, gpus, kinds[0], steps)
    least = layouts.smallest(model, settings, gpus, kinds[0], steps)
    others = [_best(model, settings, nodes, gpus, kind, steps) for kind in kinds] if len(kinds) > 1 else []
    others_fit = [one for one in others if one]
    return Report(model, now, known, better, least, others_fit, assumed, str(job.get("mem") or ""), counted)


def _best(
    model: Architecture, settings: TrainConfig, nodes: int, gpus: int, kind: Device, steps: int
) -> Planned | None:
    found = layouts.alternatives(model, settings, nodes, gpus, kind, steps)
    return found[0] if found else layouts.smallest(model, settings, gpus, kind, steps)


def _recipe_of(values: dict[str, Any], ranks: int) -> tuple[dict[str, Any], list[str]]:
    """A recipe around a config.json and the words that were typed after it, and what had to be assumed."""
    spoken = {key: value for key, value in values.items() if key in TrainConfig.__struct_fields__ and key != "name"}
    shape = {key: value for key, value in values.items() if key not in (*TrainConfig.__struct_fields__, "job")}
    tokens = min(4096, int(shape.get("max_position_embeddings") or 4096))
    batch = 512 if 512 % ranks == 0 else 8 * ranks
    tree = {
        "model": {"config": shape, "tokenizer": "."},
        "data": {"train": ["data.jsonl"], "seq_len": tokens},
        "train": {"global_batch_size": batch, "steps": 1000, "micro_batch_size": 1},
        "optim": {"lr": 1e-5},
        "engine": {"kind": "fsdp"},
    }
    said = f"a config alone: {batch} sequences of {tokens:,} tokens a step, 1,000 steps, engine.kind=fsdp"
    return merge(tree, spoken), [f"{said}, but for what is typed"]


def check(text: str, nodes: int, gpus: int, gpus_of: str, run: Path, force: bool = False) -> tuple[float, str] | None:
    """Refuse a resolved config that cannot fit on such GPUs, but for `force`; `run`: the run's folder, beside others.
    Returns how many seconds to ask for, and what they are; None: nobody knows how long the run is.

    Raises ConfigError with a layout that fits; where the model is not known, nothing is refused."""
    settings = config.resolve(parse_yaml(text, "config.yaml"), "config.yaml")
    try:
        model = model_of(settings)
    except ConfigError:
        return None
    kind = device(gpus_of, run.parent)
    kind = replace(kind, own=own.reached(run.parent, settings, model, kind))
    known = length(settings, config.cache_folder(settings.data, run))
    now = layouts.planned(model, settings, nodes, gpus, kind, known.steps if known else 1)
    if now.fits or force or not model.known:
        return asked(now.time) if known else None
    one = _best(model, settings, nodes, gpus, kind, 1)
    raise ConfigError(f"{too_large(now)}: {instead(one)} (--force submits it all the same)")


def checkpoint_size(text: str) -> float | None:
    """Bytes of one checkpoint of a resolved config; None: its model is not known."""
    settings = config.resolve(parse_yaml(text, "config.yaml"), "config.yaml")
    try:
        return checkpoint_bytes(model_of(settings), settings)
    except ConfigError:
        return None


def asked(time: Time) -> tuple[float, str]:
    """Seconds, with the margin that their source takes; in words."""
    seconds = time.seconds * (1 + time.margin)
    return seconds, f"the plan says {duration(time.seconds)}, and {time.margin:.0%} more"


def too_large(one: Planned) -> str:
    size, has = one.memory.gpu / 2**30, one.device.bytes / 2**30
    return f"it does not fit: {size:,.1f} GiB on each GPU, {one.device.name} has {has:.1f}"


def instead(one: Planned | None) -> str:
    if one is None:
        return "no layout of up to 1,024 nodes does: take fewer bytes a parameter (train.precision=bf16), or lora"
    return f"take {' '.join(one.words)}"
