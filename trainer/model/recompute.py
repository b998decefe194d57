"""Gradient checkpointing: activations that are computed again on the way back, or wait in host memory, take none."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import create_selective_checkpoint_contexts

from settings import ConfigError
from trainer.schema import EveryK, Train

_aten = torch.ops.aten
_KEPT = [
    *(_aten.mm.default, _aten.addmm.default, _aten.bmm.default),
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
]
"""What `selective` keeps: matrix products and attention, which take the time; the rest is cheap to compute again."""


def enable(model: Any, settings: Train) -> None:
    """By transformers' own layers. Raises ConfigError for a model that cannot."""
    mode = settings.gradient_checkpointing
    if mode is False:
        return
    options: dict[str, Any] = {"use_reentrant": False}
    if mode == "selective":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, _kept())
    every = mode.every_k if isinstance(mode, EveryK) else 1
    offload = settings.activation_offload and torch.cuda.is_available()  # else they lie in host memory already
    try:
        model.activation_checkpointing_enable(options, every_n_layers=every, offload=offload)
    except ValueError as error:
        raise ConfigError(f"train.gradient_checkpointing: {error}") from None


def _kept() -> list[Any]:
    from torch.nn.attention import varlen  # noqa: F401  its import makes the kernel known to torch

    four_bits = getattr(torch.ops.bitsandbytes, "gemm_4bit", None)  # there when lora.quantize has imported it
    return [*_KEPT, torch.ops.torch_attn._varlen_attn.default, *([four_bits.default] if four_bits else [])]
