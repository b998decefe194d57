"""An `fsdp` / `fsdp_config` block as transformers and accelerate take it, read into our own settings. Torch-free.

Their keys of FSDP 1 and 2 (transformers 5.23.0, accelerate 1.15.0), with and without the prefix `fsdp_`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from settings import ConfigError, nearest

_MEANING: dict[str, dict[str, bool]] = {
    "full_shard": {"reshard": True},
    "shard_grad_op": {"reshard": False},
    "hybrid_shard": {"reshard": True, "hybrid": True},
    "hybrid_shard_zero2": {"reshard": False, "hybrid": True},
    "offload": {"offload": True},
    "auto_wrap": {},
}
"""Words of `fsdp`, as settings of ours."""
_OLD = "has no meaning any more: torch's fully_shard does it by itself"
_WITHOUT_MEANING = {
    "state_dict_type": "checkpoints are sharded, and every engine reads them; `export/` holds the whole model",
    **dict.fromkeys(("use_orig_params", "sync_module_states", "limit_all_gathers", "backward_prefetch"), _OLD),
    **dict.fromkeys(("forward_prefetch", "version", "cpu_ram_efficient_loading"), _OLD),
}
_KNOWN = ("auto_wrap_policy", "transformer_layer_cls_to_wrap", "offload_params", "reshard_after_forward")


def translated(engine: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The engine's own settings from a block in its `config`, and what of the block has no meaning, a line each.

    Raises ConfigError for what this trainer cannot do, and for unknown keys.
    """
    block = engine["config"]
    for key in block:
        if key not in ("fsdp", "fsdp_config"):
            raise ConfigError(f"engine.config: {key}: a block of transformers has fsdp and fsdp_config")
    out: dict[str, Any] = {}
    for word in _words(block.get("fsdp")):
        if word == "no_shard":
            raise ConfigError(f"engine.config: fsdp: {word}: every rank holds everything: that is engine.kind=ddp")
        if word not in _MEANING:
            near = nearest(word, _MEANING)
            raise ConfigError(f"engine.config: fsdp: {word}: did you mean {near or 'full_shard'}?")
        out |= _MEANING[word]
    given = block.get("fsdp_config") or {}
    if not isinstance(given, Mapping):
        raise ConfigError(f"engine.config: fsdp_config={given}: its keys are expected here, not another file's name")
    options = {key.removeprefix("fsdp_"): value for key, value in given.items()}
    notes = []
    for key, value in options.items():
        if key in _WITHOUT_MEANING:
            notes.append(f"engine.config: {key}={value}: {_WITHOUT_MEANING[key]}")
        elif key not in _KNOWN:
            near = nearest(key, (*_KNOWN, *_WITHOUT_MEANING))
            raise ConfigError(
                f"engine.config: fsdp_config.{key}: {f'did you mean {near}?' if near else 'is not known'}"
            )
    # What stands beside the block, or was typed, is ours, and newer.
    return out | _own(options) | {key: value for key, value in engine.items() if key != "config"}, notes


def _words(said: Any) -> list[str]:
    """`fsdp` is a text of words, a list of them, or true."""
    if said in (None, True, ""):
        return []
    return [str(word).lower() for word in (said.split() if isinstance(said, str) else said)]


def _own(options: Mapping[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    policy = str(options.get("auto_wrap_policy", "TRANSFORMER_BASED_WRAP"))
    if policy != "TRANSFORMER_BASED_WRAP":
        raise ConfigError(f"engine.config: auto_wrap_policy={policy}: a unit is a layer: take TRANSFORMER_BASED_WRAP")
    if options.get("offload_params") is True:
        out["offload"] = True
    if (named := options.get("transformer_layer_cls_to_wrap")) is not None:
        out["layers"] = [name.strip() for name in named.split(",")] if isinstance(named, str) else list(named)
    if (freed := options.get("reshard_after_forward")) is not None:
        known = {"FULL_SHARD": True, "SHARD_GRAD_OP": False, "true": True, "false": False}
        if str(freed) not in known and not isinstance(freed, bool):
            raise ConfigError(f"engine.config: reshard_after_forward={freed}: true or false is expected")
        out["reshard"] = freed if isinstance(freed, bool) else known[str(freed)]
    return out
