"""The model that a recipe trains, as the plan sees it. Torch-free."""

from __future__ import annotations

from pathlib import Path

from settings import ConfigError, read_json
from trainer.model.new_tokens import MULTIPLE
from trainer.plan import architecture
from trainer.plan.architecture import Architecture
from trainer.schema import TrainConfig


def model_of(settings: TrainConfig) -> Architecture:
    """Of the recipe's block or of the folder's config.json. Raises ConfigError."""
    model = settings.model
    if model.path is None:
        found = architecture.read(model.config or {})
    else:
        path = Path(model.path) / "config.json"
        if not path.is_file():
            raise ConfigError(f"model.path={model.path}: there is no config.json: the plan reads the shape from it")
        found = architecture.read(read_json(path), str(path))
    if model.new_tokens:  # at most: rows that are spare already take some
        rows = found.vocabulary + len(model.new_tokens)
        found = found.with_vocabulary(-(-rows // MULTIPLE) * MULTIPLE)
    return found
