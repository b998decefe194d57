"""The model's shape, checked without torch, so that a login node finds a mistake before the queue."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from settings import ConfigError, nearest, to_plain
from trainer.shape import Dynamic, Linear, Llama3, Longrope, Model, Rope, Yarn

_ROPE = {"type", "rope_type", *(name for one in (Yarn, Llama3, Longrope) for name in one.__struct_fields__)}
"""What scaling says in rope_parameters."""


def config_of(settings: Model) -> Any:
    """The Hugging Face config of the folder or of the new model, with its positions scaled. Its vocabulary is that of
    the weights: rows of new tokens come later. Raises ConfigError."""
    from transformers import AutoConfig

    if settings.path is None:
        config = new_config(settings)
    else:
        config = of_folder(settings, lambda path: AutoConfig.from_pretrained(path, local_files_only=True))
    scale_positions(config, settings.rope)
    return config


def of_folder(settings: Model, read: Callable[[str], Any]) -> Any:
    """What is read of the model's folder. Raises ConfigError."""
    assert settings.path is not None
    try:
        return read(settings.path)
    except (OSError, ValueError, ImportError) as error:
        if getattr(error, "errno", None) not in (None, errno.ENOENT):
            raise  # a file system that fails now may work again; that is no mistake of the user's
        raise ConfigError(f"model.path={settings.path}: {' '.join(str(error).split())}") from None


def weight_files(folder: Path) -> list[Path]:
    """A folder's safetensors files; none where the weights lie in another form."""
    index = folder / "model.safetensors.index.json"
    names = sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.exists() else []
    return [folder / name for name in names] or list(folder.glob("model.safetensors"))


def open_weights(path: Path, framework: str) -> Any:
    """A safetensors file, whose header says how long it is. Raises ValueError for one that is cut, or not there."""
    from safetensors import SafetensorError, safe_open

    try:
        open(path, "rb").close()  # an error of its has a number, one of safe_open's has none
        return safe_open(path, framework=framework)
    except FileNotFoundError:
        raise ValueError(f"there is no {path.name}: the model's folder is not whole") from None
    except SafetensorError as error:
        raise ValueError(f"{path.name}: {error}: a file that is cut, or a pointer of git lfs: fetch it anew") from None


def check_weights(settings: Model) -> None:
    """The files of a folder's weights are whole, as far as their headers tell. Raises ConfigError."""
    if settings.path is not None:
        of_folder(settings, lambda path: [open_weights(file, "numpy") for file in weight_files(Path(path))])


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


def scale_positions(config: Any, rope: Rope | None) -> None:
    """Write the scaling into a model's Hugging Face config, before the model is built. Raises ConfigError."""
    if rope is None:
        return
    config = config.get_text_config()
    now = getattr(config, "rope_parameters", None)
    if not now:
        raise ConfigError(f"model.rope: {config.model_type} has no rotary positions")
    if "rope_theta" not in now:
        raise ConfigError(f"model.rope: {config.model_type} has other ones for each kind of layer: {', '.join(now)}")
    if now["rope_type"] != "default" and rope.original_max_position_embeddings is None:
        raise ConfigError(
            f"model.rope: the model's positions are scaled already ({now['rope_type']}): give "
            f"original_max_position_embeddings: what factor={rope.factor:g} counts from"
        )
    _check_factors(config, now, rope)
    before = rope.original_max_position_embeddings or config.max_position_embeddings
    given = {key: value for key, value in to_plain(rope).items() if value is not None}
    # The base, and what a model's kind adds, survive: without rope_theta the model's own code dies.
    values = {**{key: value for key, value in now.items() if key not in _ROPE - {"rope_theta"}}, **given}
    if isinstance(rope, Linear | Dynamic):
        values.pop("original_max_position_embeddings", None)  # transformers knows none here
    else:
        values["original_max_position_embeddings"] = before
        if hasattr(config, "original_max_position_embeddings"):  # Phi 3 has it there, and it would win
            config.original_max_position_embeddings = before
    config.rope_parameters = values
    # The dynamic frequencies begin to move at this length, so it stays the trained one.
    config.max_position_embeddings = before if isinstance(rope, Dynamic) else int(before * rope.factor)


def _check_factors(config: Any, now: dict[str, Any], rope: Rope) -> None:
    """Raises ConfigError when longrope's lists are not of the model's size."""
    if not isinstance(rope, Longrope):
        return
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    pairs = int(head * now.get("partial_rotary_factor", 1.0)) // 2
    for name, values in (("short_factor", rope.short_factor), ("long_factor", rope.long_factor)):
        if len(values) != pairs:
            raise ConfigError(f"model.rope.{name} has {len(values)} numbers, the model has {pairs} frequencies")


def context_notes(model: Model, length: int) -> list[str]:
    """A line when a sequence, of `length` tokens, is longer than what the model has positions for."""
    values = model.config or folder_config(str(model.path))
    values = values.get("text_config") or values
    context = values.get("max_position_embeddings")
    if model.rope is not None:
        trained = model.rope.original_max_position_embeddings or context
        context = trained and int(trained * model.rope.factor)
    if context is None or length <= context:
        return []
    remedy = "raise model.rope.factor" if model.rope else "scale them by model.rope"
    return [f"data.seq_len={length} is more than the model's {context} positions: {remedy}, or take a smaller seq_len"]


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
