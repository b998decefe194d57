"""What to train, checked: a recipe's tree as the typed config of a run. Torch-free."""

from __future__ import annotations

import typing
from pathlib import Path
from types import UnionType
from typing import Any

from msgspec.structs import replace

from settings import ConfigError, Struct, convert, read_yaml, to_plain
from trainer.schema import LAYOUT, Data, Deepspeed, TrainConfig, default_rate
from trainer.scratch import on_disk


def resolve(data: dict[str, Any], source: str) -> TrainConfig:
    """The checked config of a recipe. Raises ConfigError with one line for the first mistake."""
    config = convert(data, TrainConfig, source)
    if (config.model.path is None) == (config.model.config is None):
        raise ConfigError(
            f"{source}: give either model.path (a folder) or model.config (a new model), not both or none"
        )
    if config.model.config is not None and "model_type" not in config.model.config:
        raise ConfigError(f"{source}: model.config.model_type is missing: for example model_type: llama")
    if (config.train.steps is None) == (config.train.epochs is None):
        raise ConfigError(f"{source}: give either train.steps or train.epochs, not both or none")
    if config.train.activation_offload and config.train.gradient_checkpointing in (False, "selective"):
        raise ConfigError(
            f"{source}: train.activation_offload needs train.gradient_checkpointing=true or every_k: what a layer "
            f"keeps is offloaded"
        )
    if config.train.compile and config.train.gradient_checkpointing == "selective":
        raise ConfigError(
            f"{source}: train.compile leaves gradient_checkpointing=selective nothing to select, since it sees no "
            f"matrix product inside a compiled layer: take true, or every_k"
        )
    if config.evaluation.every and not config.data.evaluation:
        raise ConfigError(
            f"{source}: evaluation.every={config.evaluation.every} needs data.evaluation: a held-out file"
        )
    _check_checkpoint(config, source)
    _check_quantize(config, source)
    _check_forgetting(config, source)
    if config.optim.lr is not None:
        return config
    if config.model.path is None:
        raise ConfigError(
            f"{source}: optim.lr is missing: a model that starts from nothing (model.config) has no default rate: "
            "give one, for example optim.lr=3e-4"
        )
    return replace(config, optim=replace(config.optim, lr=default_rate(config.data.format, config.lora is not None)))


def _check_checkpoint(config: TrainConfig, source: str) -> None:
    every, best = config.checkpoint.every, config.checkpoint.keep_best
    if every != "auto" and isinstance(every, str) and config.checkpoint.seconds is None:
        raise ConfigError(f"{source}: checkpoint.every={every}: a number of steps, a time such as 30m or 2h, or auto")
    if best and not config.evaluation.every:
        raise ConfigError(f"{source}: checkpoint.keep_best={best} needs evaluation.every: losses to choose by")


def _check_quantize(config: TrainConfig, source: str) -> None:
    if config.lora is None or config.lora.quantize is None:
        return
    setting, engine = f"{source}: lora.quantize={config.lora.quantize}", to_plain(config.engine)["kind"]
    if config.model.path is None:
        raise ConfigError(
            f"{setting} needs model.path: a new model (model.config) has no weights that are worth keeping"
        )
    if engine != "ddp":
        raise ConfigError(
            f"{setting} needs engine.kind=ddp: 4-bit weights stay whole on every rank, and {engine} would cut them"
        )
    if not config.train.bf16_passes:
        raise ConfigError(
            f"{setting} computes in bf16, which train.precision=fp32 rules out: take master32, adam32 or bf16"
        )


def _check_forgetting(config: TrainConfig, source: str) -> None:
    forgetting = config.forgetting
    if forgetting is None:
        return
    setting = f"{source}: forgetting.method={forgetting.method}"
    if config.lora is not None:
        raise ConfigError(f"{setting} is for full training: lora leaves the weights as they are: leave one of them out")
    if config.lean_optimizer:
        raise ConfigError(
            f"{setting} moves fp32 weights beside torch's AdamW, not with train.precision={config.train.precision} and "
            f"optim.name={config.optim.name}: take train.precision=master32 and optim.name=adamw"
        )
    if forgetting.method == "ewc" and not (forgetting.data and all(one.files for one in config.to_keep.values())):
        raise ConfigError(f"{setting} needs forgetting.data: files of what is to be kept, or forgetting.method=l2sp")
    theirs = config.engine.json if isinstance(config.engine, Deepspeed) else {}
    if "offload_optimizer" in on_disk(theirs.get("zero_optimization") or {}):
        raise ConfigError(
            f"{setting} cannot reach weights on a disk: take offload_optimizer.device=cpu, or more ranks, in "
            f"engine.config"
        )


def cache_folder(data: Data, run_dir: Path) -> Path:
    """Where a run's prepared data lies: runs share it, since its folders are named by content."""
    return Path(data.cache) if data.cache else run_dir.parent / ".prepared"


def check_files(config: TrainConfig, source: str) -> None:
    """Every file and folder that the config names exists. Raises ConfigError."""
    named = {**{f"data.{key}": documents for key, documents in config.data.sources.items()}, **config.to_keep}
    for key, documents in named.items():
        for path in documents.files:
            if not Path(path).is_file():
                raise ConfigError(f"{source}: {key}: there is no file {path}")
    for key, folder in (("model.path", config.model.path), ("model.tokenizer", config.model.tokenizer_folder)):
        if folder is not None and not Path(folder).is_dir():
            raise ConfigError(f"{source}: {key}: there is no folder {folder}")


def read(path: Path) -> TrainConfig:
    return resolve(read_yaml(path), str(path))


def exact_part(config: TrainConfig) -> dict[str, Any]:
    """The fields that make the run what it is, as plain data: what a resume compares."""
    out = _exact(TrainConfig, to_plain(config))
    del out["name"]
    return out


def _exact(kind: Any, data: dict[str, Any]) -> dict[str, Any]:
    out = {}
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        if LAYOUT in getattr(hint, "__metadata__", ()):
            continue
        section = _section(hint)
        out[name] = _exact(section, data[name]) if section and data[name] is not None else data[name]
    return out


def _section(hint: Any) -> Any:
    """The Struct of a section that must be there, or may be (`Section | None`)."""
    optional = [kind for kind in typing.get_args(hint) if kind is not type(None)] if isinstance(hint, UnionType) else []
    kind = optional[0] if len(optional) == 1 else hint
    return kind if isinstance(kind, type) and issubclass(kind, Struct) else None


def differences(old: dict[str, Any], new: dict[str, Any], path: str = "") -> list[tuple[str, Any, Any]]:
    """Dotted keys whose values differ, with both."""
    found = []
    for key in [*old, *(key for key in new if key not in old)]:
        was, now = old.get(key), new.get(key)
        if isinstance(was, dict) and isinstance(now, dict):
            found += differences(was, now, f"{path}{key}.")
        elif was != now:
            found.append((f"{path}{key}", was, now))
    return found


_PATHS = (
    *(("model", "path"), ("model", "tokenizer"), ("data", "cache"), ("data", "train"), ("data", "evaluation")),
    *(("engine", "config"), ("forgetting", "data")),
)


def absolute_paths(recipe: dict[str, Any], base: Path) -> dict[str, Any]:
    """The recipe with its file names made absolute: they count from the recipe's own folder."""
    out = {key: dict(value) if isinstance(value, dict) else value for key, value in recipe.items()}
    for section, key in _PATHS:
        table = out.get(section)
        if isinstance(table, dict) and key in table:  # what is of another type is refused later, by name
            table[key] = _absolute(table[key], base)
    return out


def _absolute(value: Any, base: Path) -> Any:
    if isinstance(value, list):
        return [_absolute(item, base) for item in value]
    if isinstance(value, dict):  # a source, or several with names; or the JSON of an engine, which names no files
        of = [key for key, one in value.items() if key == "files" or isinstance(one, dict) and "files" in one]
        return {**value, **{key: _absolute(value[key], base) for key in of}}
    return str(base / Path(value).expanduser()) if isinstance(value, str) else value
