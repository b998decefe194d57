"""What to train, checked: a recipe's tree as the typed config of a run. Torch-free."""

from __future__ import annotations

import glob
import math
import typing
from pathlib import Path
from types import UnionType
from typing import Any

from msgspec.structs import replace

from settings import LAYOUT, ConfigError, Struct, convert, expanded, nearest, read_yaml, to_plain
from trainer.data.files import find
from trainer.engines.deepspeed.scratch import on_disk
from trainer.engines.deepspeed.settings import Deepspeed
from trainer.model.new_tokens import check_texts
from trainer.schema import Ramp, Rate, Stage, TrainConfig, default_rate
from trainer.sources import Data


def resolve(data: dict[str, Any], source: str) -> TrainConfig:
    """The checked config of a recipe. Raises ConfigError with one line for the first mistake."""
    config = convert(data, TrainConfig, source)
    if (config.model.path is None) == (config.model.config is None):
        raise ConfigError(
            f"{source}: give either model.path (a folder) or model.config (a new model), not both or none"
        )
    if config.model.config is not None and "model_type" not in config.model.config:
        raise ConfigError(f"{source}: model.config.model_type is missing: for example model_type: llama")
    if not config.data.keys("train"):
        raise ConfigError(f"{source}: data.train: no file is given")
    if isinstance(config.engine, Deepspeed):
        config.engine.check_sections()
    _check_length(config, source)
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
    _check_kernels(config, source)
    _check_evaluation(config, source)
    _check_checkpoint(config, source)
    _check_new_tokens(config, source)
    _check_quantize(config, source)
    _check_forgetting(config, source)
    return _with_rates(config, source)


def _check_length(config: TrainConfig, source: str) -> None:
    train = config.train
    if config.stages is None:
        if (train.steps is None) == (train.epochs is None):
            raise ConfigError(f"{source}: give either train.steps or train.epochs, not both or none")
        return
    for key in ("steps", "epochs"):
        if getattr(train, key) is not None:
            raise ConfigError(f"{source}: give either train.{key} or stages, not both: each stage says how long it is")
    names = [stage.name for stage in config.stages]
    if twice := [name for index, name in enumerate(names) if name in names[:index]]:
        raise ConfigError(f"{source}: stages: the name '{twice[0]}' stands twice: each stage has its own")
    for stage in config.stages:
        _check_stage(stage, list(config.data.keys("train")), f"{source}: stages.{stage.name}")


def _check_stage(stage: Stage, sources: list[str], where: str) -> None:
    """Raises ConfigError; `sources`: the names of those of data.train."""
    if sum(length is not None for length in (stage.steps, stage.epochs, stage.tokens)) != 1:
        raise ConfigError(f"{where}: give one of steps, epochs and tokens")
    if stage.mixture is None:
        return
    if not stage.mixture:
        raise ConfigError(f"{where}.mixture names no source: give weights of {', '.join(sources)}, or leave it out")
    for name, weight in stage.mixture.items():
        if sources == [""]:
            raise ConfigError(f"{where}.mixture.{name}: data.train is a list: give its sources names, to weigh them")
        if name not in sources:
            near = nearest(name, sources)
            hint = f"did you mean {near}?" if near else f"there are: {', '.join(sources)}"
            raise ConfigError(f"{where}.mixture.{name}: data.train has no such source: {hint}")
        ends = (weight.begin, weight.end) if isinstance(weight, Ramp) else (weight,)
        if not all(0 <= end < math.inf for end in ends) or not any(ends):
            shown = f"{{from: {ends[0]:g}, to: {ends[1]:g}}}" if len(ends) > 1 else f"{ends[0]:g}"
            raise ConfigError(f"{where}.mixture.{name}={shown}: a weight is a number above 0 (one end may be 0)")
    ramps = [weight for weight in stage.mixture.values() if isinstance(weight, Ramp)]
    if len(ramps) == len(stage.mixture) and not (any(r.begin for r in ramps) and any(r.end for r in ramps)):
        raise ConfigError(f"{where}.mixture: at one end all weights are 0: give one of them another")
    if ramps and stage.epochs is not None:
        raise ConfigError(f"{where}.epochs={stage.epochs:g}: where weights change, give steps or tokens")


def _check_kernels(config: TrainConfig, source: str) -> None:
    train = config.train
    if train.kernels is None:
        return
    setting = f"{source}: train.kernels={train.kernels}"
    if train.compile:
        raise ConfigError(f"{setting} fuses what train.compile would: take one of them")
    if train.gradient_checkpointing == "selective":
        raise ConfigError(
            f"{setting} rotates queries and keys where they lie, and gradient_checkpointing=selective has kept them to "
            f"rotate again: take true, or every_k"
        )


def _check_evaluation(config: TrainConfig, source: str) -> None:
    evaluation, sets = config.evaluation, list(config.data.keys("evaluation"))
    if evaluation.every and not sets:
        raise ConfigError(f"{source}: evaluation.every={evaluation.every} needs data.evaluation: a held-out file")
    for key, one in {**config.data.sources, **config.to_keep}.items():
        if one.seq_len and not (key.startswith("evaluation.") and one.seq_len <= config.data.seq_len):
            raise ConfigError(
                f"{source}: {key}: seq_len={one.seq_len}: only a held-out set may have a length of its own, and none "
                f"beyond data.seq_len={config.data.seq_len}"
            )
    named = [("best", evaluation.best)] if evaluation.best is not None else []
    for setting, name in [*named, *((f"limits.{name}", name) for name in evaluation.limits)]:
        if not evaluation.every:
            raise ConfigError(f"{source}: evaluation.{setting} needs evaluation.every: losses to look at")
        if name not in sets:
            there = ", ".join(filter(None, sets)) or "none: data.evaluation is a list"
            raise ConfigError(f"{source}: evaluation.{setting}: there is no held-out set {name}; there are: {there}")


def _with_rates(config: TrainConfig, source: str) -> TrainConfig:
    """The config with the peak rate that the recipe does not name, and with every stage's own. Raises ConfigError."""

    def peak(given: float | None, stage: Stage | None = None) -> float:
        if given is None and config.model.path is not None:
            given = default_rate(config.purpose(stage), config.lora is not None)
        if given is None:
            raise ConfigError(
                f"{source}: optim.lr is missing: a model that starts from nothing (model.config) has no default rate: "
                "give one, for example optim.lr=3e-4"
            )
        return given

    if config.stages is None:
        return replace(config, optim=replace(config.optim, lr=peak(config.optim.lr)))
    stages = []
    for stage in config.stages:
        own = {key: value for key, value in to_plain(stage.optim).items() if value is not None}
        optim = replace(config.optim, **own)
        rate = Rate(peak(optim.lr, stage), optim.schedule, optim.warmup, optim.min_lr, optim.decay)
        stages.append(replace(stage, optim=rate))
    return replace(config, stages=stages, optim=replace(config.optim, lr=config.optim.lr or stages[0].optim.lr))


def _check_checkpoint(config: TrainConfig, source: str) -> None:
    every, best = config.checkpoint.every, config.checkpoint.keep_best
    if every != "auto" and isinstance(every, str) and config.checkpoint.seconds is None:
        raise ConfigError(f"{source}: checkpoint.every={every}: a number of steps, a time such as 30m or 2h, or auto")
    if best and not config.evaluation.every:
        raise ConfigError(f"{source}: checkpoint.keep_best={best} needs evaluation.every: losses to choose by")


def _check_new_tokens(config: TrainConfig, source: str) -> None:
    lora, texts = config.lora, config.model.new_tokens
    if texts is not None:
        try:
            check_texts(texts)
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from None
        if lora is not None and not lora.tokens:
            raise ConfigError(
                f"{source}: model.new_tokens under lora: the rows of the new tokens would stay as they start: "
                f"lora.tokens=new trains them"
            )
    elif lora is not None and lora.tokens == "new":
        raise ConfigError(f"{source}: lora.tokens=new needs model.new_tokens")


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
    if isinstance(config.engine, Deepspeed) and "offload_optimizer" in on_disk(config.engine.zero):
        raise ConfigError(
            f"{setting} cannot reach weights on a disk: take offload_optimizer.device=cpu, or more ranks, in "
            f"engine.config"
        )


OWN_CACHE = ".prepared"
"""Of prepared data: beside the run folders."""


def cache_folder(data: Data, run_dir: Path) -> Path:
    """Where a run's prepared data lies: runs share it, since its folders are named by content."""
    return Path(data.cache) if data.cache else run_dir.parent / OWN_CACHE


def check_files(config: TrainConfig, source: str) -> None:
    """Every file and folder that the config names exists, and can be read by its name. Raises ConfigError."""
    named = {**{f"data.{key}": documents for key, documents in config.data.sources.items()}, **config.to_keep}
    for key, documents in named.items():
        try:
            _ = find(documents.files), documents.columns  # for their errors
        except ConfigError as error:
            raise ConfigError(f"{source}: {key}: {error}") from None
    for key, folder in (("model.path", config.model.path), ("model.tokenizer", config.model.tokenizer_folder)):
        if folder is not None and not Path(folder).is_dir():
            raise ConfigError(f"{source}: {key}: there is no folder {folder}")


def read(path: Path) -> TrainConfig:
    return resolve(read_yaml(path), str(path))


def exact_part(config: TrainConfig) -> dict[str, Any]:
    """The fields that make the run what it is, as plain data: what a resume compares."""
    out = _exact(TrainConfig, to_plain(config))
    del out["name"]
    if config.stages is None:  # a run without them is the one that it was before there were any
        del out["stages"]
    return out


def _exact(kind: Any, data: dict[str, Any]) -> dict[str, Any]:
    out = {}
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        if LAYOUT in getattr(hint, "__metadata__", ()):
            continue
        section = _section(hint)
        out[name] = _exact(section, data[name]) if section and data[name] is not None else data[name]
    return out


def full_key(key: str) -> str:
    """`train.seed` for `seed`, when one section alone has it; else the key as it is."""
    hints = typing.get_type_hints(TrainConfig, include_extras=True)
    sections = {name: section for name, hint in hints.items() if (section := _section(hint)) is not None}
    found = [f"{name}.{key}" for name, section in sections.items() if key in section.__struct_encode_fields__]
    return found[0] if len(found) == 1 and key not in hints else key


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
    *(("engine", "config"), ("model", "new_tokens"), ("forgetting", "data")),
)


def absolute_paths(recipe: dict[str, Any], base: Path) -> dict[str, Any]:
    """The recipe with its file names made absolute, with ~ and $VARIABLES: they count from the recipe's own folder.
    Raises ConfigError."""
    out = {key: dict(value) if isinstance(value, dict) else value for key, value in recipe.items()}
    for section, key in _PATHS:
        table = out.get(section)
        if (section, key) == ("model", "new_tokens") and isinstance(table, dict) and isinstance(table.get(key), list):
            continue  # the tokens themselves, not their file
        if isinstance(table, dict) and key in table:  # what is of another type is refused later, by name
            table[key] = _absolute(table[key], base, f"{section}.{key}")
    return out


def _absolute(value: Any, base: Path, named: str) -> Any:
    if isinstance(value, list):
        return [_absolute(item, base, named) for item in value]
    if isinstance(value, dict):  # sources by name; another tool's JSON has no `files`, and stays
        return {name: _absolute_source(one, base, f"{named}.{name}.files") for name, one in value.items()}
    if not isinstance(value, str):
        return value
    path = Path(expanded(value, named)).expanduser()
    return str(Path(glob.escape(str(base)) if glob.has_magic(str(path)) else base) / path)


def _absolute_source(one: Any, base: Path, named: str) -> Any:
    return {**one, "files": _absolute(one["files"], base, named)} if isinstance(one, dict) and "files" in one else one
