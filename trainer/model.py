"""The model. Hugging Face's public API only; nothing is fetched at run time."""

from __future__ import annotations

import errno
from typing import Any

import torch

from settings import ConfigError
from trainer import attention
from trainer.config import Model
from trainer.model_config import new_config


def build(settings: Model, seed: int, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """The model with its weights on the CPU, the same on every rank. Raises ConfigError."""
    from transformers.models.auto.modeling_auto import AutoModelForCausalLM

    chosen = None if settings.attention in ("auto", attention.NAME) else settings.attention
    options = {"dtype": dtype, "attn_implementation": chosen}
    torch.manual_seed(seed)  # also rows that a folder lacks are drawn
    if settings.path is None:
        config = new_config(settings)
        try:
            return with_attention(AutoModelForCausalLM.from_config(config, **options), settings)
        except Exception as error:  # a value that only the model's own code finds wrong, as a KeyError most often
            raise ConfigError(f"model.config: {type(error).__name__} {' '.join(str(error).split())[:300]}") from None
    try:
        model = AutoModelForCausalLM.from_pretrained(settings.path, local_files_only=True, **options)
    except (OSError, ValueError, ImportError) as error:
        if getattr(error, "errno", None) not in (None, errno.ENOENT):
            raise  # a file system that fails now may work again; that is no mistake of the user's
        raise ConfigError(f"model.path={settings.path}: {' '.join(str(error).split())}") from None
    return with_attention(model, settings)


def with_attention(model: Any, settings: Model) -> torch.nn.Module:
    """Attention by documents, where the model lets others compute it. Raises ConfigError."""
    able = model._supports_attention_backend and not any(name.endswith("sinks") for name, _ in model.named_parameters())
    if settings.attention == attention.NAME and not able:
        raise ConfigError(f"model.attention={attention.NAME}: {type(model).__name__} computes its own: leave it out")
    if settings.attention == attention.NAME or settings.attention == "auto" and able:
        attention.register()
        model.set_attn_implementation(attention.NAME)
    return model  # type: ignore[no-any-return]
