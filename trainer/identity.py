"""What makes a run what it is: a resume refuses anything else, and says what changes its last bits."""

from __future__ import annotations

import json
from typing import Any

from settings import ConfigError
from trainer import config
from trainer.checkpoint.format import Manifest
from trainer.config import differences
from trainer.layout import BatchLayout
from trainer.model.model_config import folder_config
from trainer.model.weights import sampled
from trainer.schema import TrainConfig


def exact_part(settings: TrainConfig) -> dict[str, Any]:
    """What a resume must find again. Where the model's folder lies may change, what it computes may not; of adapters
    the weights beside them are in no checkpoint. Raises ConfigError."""
    exact = config.exact_part(settings)
    if settings.model.path is not None:
        exact["model"]["config"] = folder_config(settings.model.path)
        if settings.lora is not None:
            exact["model"]["weights"] = sampled(settings.model)
    return dict(json.loads(json.dumps(exact)))


def layout_part(settings: TrainConfig, layout: BatchLayout) -> dict[str, Any]:
    """What decides the order of sums and the random numbers, besides the exact part."""
    train = settings.train
    return {
        "world_size": layout.data_parallel_size,
        "engine": settings.engine.words + " compiled" * bool(train.compile) + " liger" * bool(train.kernels),
        "micro_batch_size": layout.micro_batch_size,
    }


def check_same_base(settings: TrainConfig, manifest: Manifest) -> None:
    """The folder holds the weights that a checkpoint of adapters was trained beside. Raises ConfigError."""
    was = manifest.config.get("model", {}).get("weights")
    if was is not None and was != sampled(settings.model):
        raise ConfigError(f"model.path={settings.model.path} no longer holds the weights of this run: restore it")


def check_same_run(manifest: Manifest, exact: dict[str, Any], data: str) -> None:
    """An exact field, or the data, may not differ from what the checkpoint was trained with. Raises ConfigError."""
    for key, was, value in differences(manifest.config, exact):
        raise ConfigError(f"{key} was {was} and is {value} now: this would be another run: undo it, or start a new run")
    if manifest.data != data:
        raise ConfigError(f"the data has changed since {manifest.data} (now {data}): restore it, or start a new run")
