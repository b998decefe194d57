"""A user's recipe made small: the same kind of model and tokenizer, a part of the same data, a few hundred steps."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

from settings import ConfigError
from trainer.data.files import find
from trainer.engines.deepspeed import zero
from trainer.model.model_config import folder_config, known_fields
from trainer.schema import default_rate

ROWS = 2000
"""Of every data file."""
SEQ_LEN = 64
SEQUENCES = 8
"""Of a rank, in one step."""
HANG_SECONDS = 10
"""A step is a hang after that."""
SAVE_EVERY, EVALUATE_EVERY = 12, 30
"""Steps."""
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "moe_intermediate_size": 64,
    "num_attention_heads": 4,
    "head_dim": 16,
    "n_embd": 64,
    "n_inner": 128,
    "n_head": 4,
}
"""What makes a Hugging Face model large, by its config's names; together they fit."""
COUNTS = {
    "num_hidden_layers": 2,
    "n_layer": 2,
    "num_key_value_heads": 2,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
}
"""What a model may have fewer of."""
DROPPED = ("rope_scaling", "rope_parameters", "layer_types", "max_window_layers")
"""What is fitted to the sizes or the number of the layers, and plays no part at 64 tokens."""


def shrink(tree: dict[str, Any], folder: Path, world_size: int, steps: int) -> dict[str, Any]:
    """The recipe's tree with everything that takes time made small; its data's first rows are written to `folder`.

    What the drill is about stays as it is: tokenizer, format, engine, precision, optimizer; of stages one is left.
    Raises ConfigError.
    """
    model, data, train = tree.get("model"), tree.get("data"), tree.get("train")
    if not (isinstance(model, dict) and isinstance(data, dict) and isinstance(train, dict)):
        raise ConfigError(f"{tree.get('name')}: a drill needs a recipe with model, data and train")
    small = {key: value for key, value in tree.items() if key not in ("fork", "stages", "watchdog")}
    small["model"] = small_model(model)
    if isinstance(tree.get("lora"), dict):  # new weights lie in no folder, from which alone they could be quantized
        small["lora"] = {**tree["lora"], "quantize": None}
    small["data"] = {
        **data,
        **{split: first_rows(data.get(split, []), folder, split) for split in ("train", "evaluation")},
        "seq_len": min(SEQ_LEN, data.get("seq_len", SEQ_LEN)),
        "cache": str(folder / "prepared"),
    }
    optim = tree.get("optim") or {}
    if model.get("path") and isinstance(optim, dict) and optim.get("lr") is None:
        # The small model's weights are new ones, for which there is no default.
        small["optim"] = {**optim, "lr": default_rate(data.get("format", "text"), tree.get("lora") is not None)}
    kept = {key: value for key, value in train.items() if key in ("seed", "precision", "deterministic")}
    small["train"] = {**kept, "steps": steps, "global_batch_size": world_size * SEQUENCES}
    if "engine" in tree:
        small["engine"] = zero.without_batch(tree["engine"])
    small["checkpoint"] = {"every": SAVE_EVERY}
    small["watchdog"] = dict.fromkeys(("step_seconds", "evaluation_seconds", "save_seconds"), HANG_SECONDS)
    if data.get("evaluation"):
        small["evaluation"] = {"every": EVALUATE_EVERY, "batches": 4}
    return small


def small_model(model: dict[str, Any]) -> dict[str, Any]:
    """A new model of the same architecture; its tokenizer stays the user's. Raises ConfigError."""
    kept = {key: value for key, value in model.items() if key not in ("path", "config", "rope")}
    if model.get("config"):
        return {**kept, "config": small_config(model["config"])}
    folder = str(model.get("path"))
    values = folder_config(folder)
    known = known_fields(str(values.get("model_type")))
    values = {key: value for key, value in values.items() if key in known or key == "model_type"}
    return {"tokenizer": folder, **kept, "config": small_config(values)}


def small_config(values: dict[str, Any]) -> dict[str, Any]:
    """A Hugging Face config with its sizes cut."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        if key in DROPPED:
            continue
        if isinstance(value, dict):
            out[key] = small_config(value)
        elif key in SIZES and value is not None:
            out[key] = SIZES[key]
        elif key in COUNTS and value is not None:
            out[key] = min(value, COUNTS[key])
        else:
            out[key] = value
    return out


def first_rows(files: Any, folder: Path, split: str) -> Any:
    """Copies of the files' first rows; of each source, where there are several. Raises ConfigError."""
    if isinstance(files, dict):
        named = enumerate(files.items())
        return {
            name: {**one, "files": first_rows(one["files"], folder, f"{split}-{place}")} for place, (name, one) in named
        }
    out = []
    for number, file in enumerate(find(files)):
        if not file.endswith((".jsonl", ".txt")):
            raise ConfigError(f"{file}: a rehearsal takes first rows of .jsonl and .txt: name one: data.train=[FILE]")
        target = folder / f"{split}-{number}{Path(file).suffix}"
        try:
            with open(file, "rb") as source, open(target, "wb") as part:
                part.writelines(islice(source, ROWS))
        except OSError as error:
            raise ConfigError(f"{file}: {error.strerror}") from None
        out.append(str(target))
    return out
