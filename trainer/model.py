"""The model and its loss. Hugging Face's public API only; nothing is fetched at run time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from settings import ConfigError
from trainer.config import Model
from trainer.data.batches import IGNORED, MicroBatch


def build(settings: Model, seed: int) -> torch.nn.Module:
    """The model with fp32 weights on the CPU, the same on every rank. Raises ConfigError."""
    from transformers.models.auto.modeling_auto import AutoModelForCausalLM

    try:
        if settings.path is not None:
            return AutoModelForCausalLM.from_pretrained(
                settings.path, dtype=torch.float32, attn_implementation=settings.attention, local_files_only=True
            )
        torch.manual_seed(seed)
        config = hf_config(settings)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=settings.attention)
    except (OSError, ValueError, ImportError) as error:
        where = f"model.path={settings.path}" if settings.path else "model.config"
        raise ConfigError(f"{where}: {' '.join(str(error).split())}") from None


def hf_config(settings: Model) -> Any:
    """The Hugging Face config of the model. Raises ConfigError."""
    from transformers import AutoConfig

    if settings.path is not None:
        return AutoConfig.from_pretrained(settings.path, local_files_only=True)
    values = dict(settings.config or {})
    kind = values.pop("model_type")
    try:
        return AutoConfig.for_model(kind, **values)
    except ValueError as error:
        raise ConfigError(f"model.config.model_type={kind}: {str(error).splitlines()[0][:200]}") from None


def check_vocabulary(model: torch.nn.Module, tokenizer_folder: str) -> None:
    """Every token of the tokenizer has a row in the embedding. Raises ConfigError."""
    from tokenizers import Tokenizer

    tokens = Tokenizer.from_file(str(Path(tokenizer_folder) / "tokenizer.json")).get_vocab_size()
    rows = model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    if tokens > rows:
        raise ConfigError(f"model.tokenizer={tokenizer_folder} has {tokens} tokens, the model's vocab_size is {rows}")


def loss_sum(model: torch.nn.Module, batch: MicroBatch) -> Tensor:
    """Sum of the cross-entropy over a micro batch's valid targets, fp32 scalar.

    No attention mask: from positions that restart, transformers builds the mask that keeps documents apart.
    """
    logits = model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False).logits  # (B, T, V)
    return functional.cross_entropy(
        logits.float().flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORED, reduction="sum"
    )
