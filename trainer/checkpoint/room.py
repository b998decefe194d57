"""Whether a run's checkpoints find room, before it is queued. Torch-free: a login node asks."""

from __future__ import annotations

import os
from pathlib import Path

from settings import ConfigError
from trainer.plan.memory import checkpoint_bytes
from trainer.plan.model import model_of
from trainer.schema import TrainConfig

LEAST = 2
"""Checkpoints: the newest, and the one that is being written."""
FILES = 1000
"""Of a small run of some attempts; each rank writes two more in each attempt, and a few in each checkpoint."""


def check(settings: TrainConfig, folder: Path) -> str | None:
    """Of the file system of this folder, and of what it tells of a quota. Returns what its user should know. Raises
    ConfigError where not even LEAST checkpoints fit."""
    try:
        size = checkpoint_bytes(model_of(settings), settings)
    except ConfigError:  # a kind of model that the plan does not know
        return None
    found = os.statvfs(folder)
    free, files = found.f_bavail * found.f_frsize, found.f_favail
    if free < LEAST * size:
        raise ConfigError(
            f"{folder} has {free / 1e9:,.2f} GB free, and the newest checkpoint with the one that is being written "
            f"take {LEAST * size / 1e9:,.2f} GB: make room, or take another --runs-dir"
        )
    if found.f_files and files < FILES:
        raise ConfigError(f"{folder} takes {files:,} more files, and a run has about {FILES:,}: make room")
    steps = settings.train.steps or sum(stage.steps or 0 for stage in settings.stages or [])
    kept = settings.checkpoint.most(steps)
    if free > kept * size:
        return None
    stay = f"{kept} of {size / 1e9:,.2f} GB with the one that is being written"
    return f"checkpoints: {stay}, and {free / 1e9:,.2f} GB are free in {folder}: checkpoint.keep, or make room"
