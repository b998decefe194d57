"""The model's shape, checked without torch, so that a login node finds a mistake before the queue."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from settings import ConfigError, nearest
from trainer.schema import Model


def new_config(settings: Model) -> Any:
    """The Hugging Face config of a model that starts from nothing. Raises ConfigError."""
    from transformers import AutoConfig

    values = dict(settings.config or {})
    kind = values.pop("model_type")
    known = known_fields(kind)
    try:
        unknown = next((key for key in values if key not in known), None)
        config = AutoConfig.for_model(kind, **values)
    except Exception as error:  # transformers raises what its checks raise: KeyError, ValueError, its own
        raise ConfigError(f"model.config: {' '.join(str(error).split())[:300]}") from None
    if unknown is not None:
        near = nearest(unknown, known)
        raise ConfigError(
            f"model.config.{unknown}: {kind} has no such field{f': did you mean {near}?' if near else ''}"
        )
    return config


def known_fields(kind: str) -> dict[str, Any]:
    """The fields of an architecture's config, also by their other names, with their defaults. Raises ConfigError."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.for_model(kind)
        return {**config.to_dict(), **{name: getattr(config, of) for name, of in config.attribute_map.items()}}
    except Exception as error:
        raise ConfigError(f"model.config: {' '.join(str(error).split())[:300]}") from None


def folder_config(folder: str) -> dict[str, Any]:
    """The shape of the model in a Hugging Face folder, as its file says it. Raises ConfigError."""
    try:
        values = dict(json.loads((Path(folder) / "config.json").read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError) as error:
        raise ConfigError(f"model.path={folder}: {error}") from None
    return {key: value for key, value in values.items() if key not in ("transformers_version", "_name_or_path")}


def check_unquantized(settings: Model) -> None:
    """What is to be quantized is not yet. Raises ConfigError."""
    assert settings.path is not None
    if how := folder_config(settings.path).get("quantization_config"):
        method = how.get("quant_method") or "some method"
        raise ConfigError(
            f"lora.quantize: model.path={settings.path} is quantized already ({method}), and the export merges into "
            "unquantized weights: give the folder that it was made from"
        )


def check_vocabulary(rows: int, tokenizer_folder: str) -> None:
    """Every token of the tokenizer has one of the embedding's rows. Raises ConfigError."""
    from trainer.data.encode import load_tokenizer

    vocabulary = load_tokenizer(Path(tokenizer_folder)).get_vocab()
    wanted = max(vocabulary.values(), default=0) + 1
    if wanted > rows:
        raise ConfigError(f"model.tokenizer={tokenizer_folder} has {wanted} tokens, the model's vocab_size is {rows}")
