"""LoRA by peft, for the comparison with full fine-tuning: the same loop, data, engines and checkpoints.

The adapters lie in the model's own modules, so the model stays what it is to everybody else: only they have a gradient,
and only they are stepped, saved and resumed. The export merges them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from msgspec.structs import replace
from torch import Tensor

from settings import ConfigError
from trainer.model import new_tokens
from trainer.schema import Lora
from trainer.shape import Model


def with_tokens(settings: Lora, model: Model) -> Lora:
    """The settings with the ids of model.new_tokens where they say `new`. Raises ConfigError."""
    return replace(settings, tokens=list(new_tokens.grown(model).pieces)) if settings.tokens == "new" else settings


def inject(model: Any, settings: Lora, seed: int, dtype: torch.dtype = torch.float32) -> Any:
    """peft's LoraModel around the model, whose linear layers have adapters of `dtype` from here on, the same on every
    rank. The other weights have no gradient any more. Raises ConfigError."""
    try:
        from peft import LoraConfig, LoraModel
    except ImportError:
        raise ConfigError("lora needs peft in the ranks' Python: pip install peft") from None
    rows: Any = {"embed_tokens": settings.tokens} if settings.tokens else None
    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha or 2 * settings.r,  # type: ignore[arg-type]  # peft takes a float too
        lora_dropout=settings.dropout,
        target_modules=settings.targets,
        trainable_token_indices=rows,
    )
    torch.manual_seed(seed)
    try:
        adapters = LoraModel(model, config, "default")
    except ValueError as error:
        raise ConfigError(f"lora: {' '.join(str(error).split())[:300]}") from None
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)  # peft takes that of the layer, which is bf16 beside 4 bits
    return adapters


def layers(model: Any) -> dict[str, str]:
    """Where each weight that has adapters lies: its name before `inject` -> the name of peft's layer around it."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    named = (name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer))
    return {f"{name.removesuffix('.token_adapter')}.weight": name for name in named}


def merged(layer: Any, read: Callable[[str, Tensor], Tensor]) -> Tensor:
    """The weight of one of peft's layers with its adapters merged, as peft does it; the layer lies on the meta device
    before and after. `read`: the flat values of a parameter, by its name in the layer."""
    layer.to_empty(device="cpu")
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            parameter.view(-1).copy_(read(name, parameter))
    layer.merge(safe_merge=True)
    weight: Tensor = layer.get_base_layer().weight.data
    layer.to_empty(device="meta")
    return weight
