"""Losses and gradients of small models with `train.kernels`, beside those of transformers' own code, as JSON:

KERNELS=FOLDER python -m tests.trainer.gradients_by_kernels
"""

from __future__ import annotations

import json
from typing import Any

import torch
from msgspec import convert

from tests.trainer.test_loss import ARCHITECTURES, SMALL, WITHOUT_SPECIAL, batch
from tests.trainer.with_interpreted_kernels import interpret
from trainer.model import kernels, lora, recompute
from trainer.model.loss import LossModel
from trainer.model.weights import build
from trainer.schema import Lora, Train
from trainer.shape import Model

MORE: dict[str, dict[str, Any]] = {
    **{kind: more for kind, (more, _) in ARCHITECTURES.items()},
    "llama": {"mlp_bias": True, "attention_bias": True, "tie_word_embeddings": True},
    "gemma": {"head_dim": 8},
    "gemma3_text": {"head_dim": 8, "sliding_window": 7},
    "glm4": {"head_dim": 8, **WITHOUT_SPECIAL},
    "olmo3": {"sliding_window": 7, **WITHOUT_SPECIAL},
    "smollm3": WITHOUT_SPECIAL,
}


def difference(kind: str, lora_rank: int | None = None, half: bool = False, **train: Any) -> tuple[float, float]:
    """Of the loss, and of the gradient that differs most, relative."""
    found = []
    for with_kernels in (False, True):
        settings = Model(config={"model_type": kind, **SMALL, **MORE.get(kind, {})})
        model: Any = build(settings, seed=1)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():  # else what adds a weight to 1 is not told from what does not, and biases are 0
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        if with_kernels:
            kernels.check(settings, torch.device("cpu"))
            kernels.apply(model)
        recompute.enable(model, convert({"global_batch_size": 2, **train}, Train))
        if lora_rank:
            lora.inject(model, Lora(lora_rank), seed=1)
        with torch.autocast("cpu", torch.float16, enabled=half):
            total = LossModel(model)(batch())
        total.backward()
        found.append((total.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    (total, plain), (by_kernels, made) = found
    largest = max(float((made[name] - grad).norm() / grad.norm().clamp(min=1e-12)) for name, grad in plain.items())
    return abs(float(by_kernels / total) - 1), largest


if __name__ == "__main__":
    interpret()
    told = {kind: difference(kind) for kind in kernels.FAMILIES}
    for mode in (True, {"every_k": 2}):
        told[f"llama, gradient_checkpointing={mode}"] = difference("llama", gradient_checkpointing=mode)
    told["llama, lora"] = difference("llama", lora_rank=4)
    # Two bytes a number, as in bf16, whose sums the interpreter cannot make.
    told |= {f"{kind}, half": difference(kind, half=True) for kind in ("llama", "gemma2")}
    print(json.dumps(told))
