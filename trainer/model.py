"""The model and its loss. Hugging Face's public API only; nothing is fetched at run time."""

from __future__ import annotations

import errno

import torch
from torch import Tensor
from torch.nn import functional

from settings import ConfigError
from trainer.config import Model
from trainer.data.batches import IGNORED, MicroBatch
from trainer.model_config import new_config


def build(settings: Model, seed: int) -> torch.nn.Module:
    """The model with fp32 weights on the CPU, the same on every rank. Raises ConfigError."""
    from transformers.models.auto.modeling_auto import AutoModelForCausalLM

    options = {"dtype": torch.float32, "attn_implementation": settings.attention}
    torch.manual_seed(seed)  # also rows that a folder lacks are drawn
    if settings.path is None:
        config = new_config(settings)
        try:
            return AutoModelForCausalLM.from_config(config, **options)
        except Exception as error:  # a value that only the model's own code finds wrong, as a KeyError most often
            raise ConfigError(f"model.config: {type(error).__name__} {' '.join(str(error).split())[:300]}") from None
    try:
        return AutoModelForCausalLM.from_pretrained(settings.path, local_files_only=True, **options)
    except (OSError, ValueError, ImportError) as error:
        if getattr(error, "errno", None) not in (None, errno.ENOENT):
            raise  # a file system that fails now may work again; that is no mistake of the user's
        raise ConfigError(f"model.path={settings.path}: {' '.join(str(error).split())}") from None


def loss_sum(model: torch.nn.Module, batch: MicroBatch) -> Tensor:
    """Sum of the cross-entropy over a micro batch's valid targets, fp32 scalar.

    No attention mask: from positions that restart, transformers builds the mask that keeps documents apart. For flash
    attention it does so for one row only, so the rows of a batch are laid end to end.
    """
    if getattr(model, "module", model).config._attn_implementation.startswith("flash"):
        batch = MicroBatch(*(tensor.reshape(1, -1) for tensor in (batch.input_ids, batch.labels, batch.position_ids)))
    logits = model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False).logits  # (B, T, V)
    return functional.cross_entropy(
        logits.float().flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORED, reduction="sum"
    )
