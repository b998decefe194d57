"""LoRA by peft, for the comparison with full fine-tuning: the same loop, data, engines and checkpoints.

The adapters lie in the model's own modules, so the model stays what it is to everybody else: only they have a gradient,
and only they are stepped, saved and resumed. The export merges them.
"""

from __future__ import annotations

from typing import Any

import torch

from settings import ConfigError
from trainer.config import Lora


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
