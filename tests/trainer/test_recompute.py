"""What gradient checkpointing keeps, and that nothing else changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from settings import ConfigError
from tests.trainer.test_loss import SMALL, batch
from trainer.model import recompute
from trainer.model.loss import LossModel
from trainer.model.weights import build
from trainer.schema import EveryK, Train
from trainer.shape import Model

MODES: list[Any] = [False, "selective", EveryK(3), EveryK(2), True]


def gradients_and_kept(mode: Any, offload: bool = False) -> tuple[list[torch.Tensor], int]:
    """Gradients, and bytes of activations that stand between forward and backward (not counting weights)."""
    config = {"model_type": "llama", **SMALL, "num_hidden_layers": 6, "attention_dropout": 0.1}
    model = build(Model(config=config), seed=1)
    recompute.enable(
        model, Train(global_batch_size=1, steps=1, gradient_checkpointing=mode, activation_offload=offload)
    )
    model.train()
    whole = LossModel(model)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    torch.manual_seed(0)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        total = whole(batch())
    total.backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None], sum(kept.values())


# From torch 2.14 on it says that `selective` keeps tensors past such hooks, which are this test's alone.
@pytest.mark.filterwarnings("ignore:A saved_tensors_hooks context:FutureWarning")
@pytest.mark.parametrize("mode", MODES[1:], ids=str)
def test_gradients_are_the_same_to_the_bit(mode: Any) -> None:
    plain, _ = gradients_and_kept(False)
    made, _ = gradients_and_kept(mode)
    assert all(torch.equal(a, b) for a, b in zip(made, plain, strict=True)) and len(made) == len(plain)


def test_offloaded_activations_come_back_the_same() -> None:
    plain, _ = gradients_and_kept(False)
    made, _ = gradients_and_kept(True, offload=True)
    assert all(torch.equal(a, b) for a, b in zip(made, plain, strict=True))


def test_the_more_is_computed_again_the_less_is_kept() -> None:
    kept = {str(mode): gradients_and_kept(mode)[1] for mode in (False, EveryK(3), EveryK(2), True)}
    assert sorted(kept.values(), reverse=True) == list(kept.values()) and len(set(kept.values())) == 4, kept
    assert kept["True"] < kept["False"] / 5


def test_a_model_that_cannot_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = build(Model(config={"model_type": "llama", **SMALL}), seed=1)
    monkeypatch.setattr(type(model), "supports_gradient_checkpointing", False)
    with pytest.raises(ConfigError, match="train.gradient_checkpointing: .* does not support"):
        recompute.enable(model, Train(global_batch_size=1, steps=1, gradient_checkpointing=True))
