"""Frozen weights in 4 bits (QLoRA), by bitsandbytes: linear layers in NF4, their scales in 8 bits, the rest in bf16.

transformers quantizes each tensor as soon as it is read, on the rank's own device: the model never stands there whole.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from settings import ConfigError
from trainer.model.model import pretrained
from trainer.model.model_config import check_unquantized
from trainer.shape import Model


def build(settings: Model, seed: int, device: torch.device) -> torch.nn.Module:
    """The whole model of a folder, on the device. Raises ConfigError."""
    check_unquantized(settings)
    check_device(device)
    from bitsandbytes.nn import Linear4bit
    from transformers import BitsAndBytesConfig

    torch.manual_seed(seed)
    how = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    model = pretrained(settings, torch.bfloat16, quantization_config=how, device_map={"": device})
    for module in model.modules():
        if isinstance(module, Linear4bit):
            # On a CPU with AVX512-BF16 an evaluation would pack the weights anew for inference, for good: no gradient
            # goes through what is packed, and the training after it would go on without one.
            module.support_avx512bf16_for_cpu = False
    return model


def check_device(device: torch.device) -> None:
    """Forward and backward of one small layer. Raises ConfigError where bitsandbytes is missing or cannot do it."""
    # On a CPU with AVX512-BF16 its import complains about a kernel for inference, which it would fetch.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    try:
        import bitsandbytes
    except ImportError:
        raise ConfigError("lora.quantize needs bitsandbytes in the ranks' Python: pip install bitsandbytes") from None
    try:
        weight: Any = bitsandbytes.nn.Params4bit(torch.ones(64, 64, dtype=torch.bfloat16), quant_type="nf4").to(device)
        x = torch.ones(2, 64, dtype=torch.bfloat16, device=device, requires_grad=True)
        bitsandbytes.matmul_4bit(x, weight, quant_state=weight.quant_state).sum().backward()
        assert x.grad is not None and bool(torch.isfinite(x.grad).all()), "a gradient that is not finite"
    except torch.OutOfMemoryError:
        raise  # of another process that is about to leave: the next attempt may find room
    except Exception as error:  # what a library that was built for other devices raises, it says nowhere
        what = f"the installed bitsandbytes ({bitsandbytes.__version__}) cannot compute on {device.type}"
        raise ConfigError(f"lora.quantize: {what}: {' '.join(str(error).split())[:300]}") from None


def elements(parameter: Tensor) -> int:
    """Of the weights that it stands for: two lie in a byte."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else int(state.shape.numel())


def held_bytes(parameter: Tensor) -> int:
    """With the scales that lie beside it."""
    state = getattr(parameter, "quant_state", None)
    if state is None:
        return parameter.nbytes
    tensors = (state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code)
    return parameter.nbytes + sum(int(tensor.nbytes) for tensor in tensors)
