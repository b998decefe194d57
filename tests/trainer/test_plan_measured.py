"""The plan's formulas against what torch keeps."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.gpu.ours import micro_batch
from benchmarks.plan.cases import CASES
from benchmarks.plan.measure import peak
from trainer.model import recompute
from trainer.model.loss import LossModel
from trainer.model.model import materialize
from trainer.model.weights import hollow
from trainer.plan.activations import Passes, layer_bytes, selected_bytes
from trainer.plan.architecture import read
from trainer.schema import Train
from trainer.shape import Model

TOKENS, ROWS = 50, 2
"""Not of any size that the weights have: by their shape their copies are told apart."""
WIDE = {"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512, "pad_token_id": 0}
KINDS: dict[str, dict[str, Any]] = {
    "llama": {**WIDE, "intermediate_size": 704, "head_dim": 48},
    "qwen3": {**WIDE, "intermediate_size": 704, "head_dim": 48},
    "gemma3_text": {**WIDE, "intermediate_size": 704, "head_dim": 48},
    "olmo2": {**WIDE, "intermediate_size": 704},
    "starcoder2": {**WIDE, "intermediate_size": 704},
    "mixtral": {**WIDE, "intermediate_size": 704, "num_local_experts": 4},
}


def kept(kind: str, layers: int, autocast: bool, mode: Any) -> float:
    """Bytes a token that autograd keeps; the weights' bf16 copies do not count."""
    config = {"model_type": kind, **KINDS[kind], "num_hidden_layers": layers}
    model = hollow(Model(config=config), 0, torch.float32 if autocast else torch.bfloat16)
    materialize(model, torch.device("cpu"))
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.02)
    recompute.enable(model, Train(global_batch_size=1, steps=1, gradient_checkpointing=mode))
    whole, found = LossModel(model.train()), {}
    known = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    shapes = {tuple(shape) for parameter in model.parameters() for shape in (parameter.shape, parameter.shape[::-1])}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known and not (tensor.dtype == torch.bfloat16 and tuple(tensor.shape) in shapes):
            found[storage.data_ptr()] = storage
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
    ):
        loss = whole(micro_batch(ROWS, TOKENS, 512, None, 0))
    size = sum(storage.nbytes() for storage in found.values())
    loss.detach_()
    return size / (ROWS * TOKENS)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_keeps_what_the_plan_says(kind: str, autocast: bool) -> None:
    model = read({"model_type": kind, **KINDS[kind], "num_hidden_layers": 2})
    passes = Passes(2, 4 if autocast else 2, on_gpu=False, whole_scores=False)
    found = kept(kind, 3, autocast, False) - kept(kind, 2, autocast, False)
    assert layer_bytes(model, model.layers[0], passes, TOKENS) == pytest.approx(found, rel=0.02)


def test_a_layer_that_is_computed_again_keeps_its_input() -> None:
    assert kept("llama", 3, False, True) - kept("llama", 2, False, True) == 2 * 256
    model = read({"model_type": "llama", **KINDS["llama"]})
    passes = Passes(2, 2, on_gpu=False, whole_scores=False)
    full = layer_bytes(model, model.layers[0], passes, TOKENS)
    assert 2 * 256 < selected_bytes(model, model.layers[0], passes) < full


@pytest.mark.nightly
def test_the_peak_of_a_process_is_the_planned_one() -> None:
    index = next(i for i, case in enumerate(CASES) if str(case) == "12M, T=512 b4, ddp, master32")
    assert CASES[index].planned().gpu == pytest.approx(peak(index, CASES[index]), rel=0.06)
