"""The loss in pieces, and attention document by document, beside transformers' own: architectures by their shapes."""

from __future__ import annotations

import copy
import gc
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from settings import ConfigError
from trainer.data.batches import MicroBatch
from trainer.data.prepared import IGNORED
from trainer.model import attention, loss
from trainer.model.attention import Documents
from trainer.model.loss import LossModel, Tail
from trainer.model.weights import build
from trainer.shape import Model

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 64,
}
WITHOUT_SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
ARCHITECTURES: dict[str, tuple[dict[str, Any], Tail]] = {
    "llama": ({"tie_word_embeddings": True}, Tail()),
    "qwen2": ({}, Tail()),
    "qwen3": ({"head_dim": 16}, Tail()),
    "mistral": ({"sliding_window": 7, "head_dim": 8}, Tail()),
    "gemma2": (
        {
            "final_logit_softcapping": 5.0,
            "attn_logit_softcapping": 3.0,
            "query_pre_attn_scalar": 8,
            "sliding_window": 7,
            "head_dim": 8,
        },
        Tail(cap=5.0),
    ),
    "granite": ({"logits_scaling": 4.0}, Tail(0.25)),
    "cohere": ({**WITHOUT_SPECIAL, "logit_scale": 0.0625}, Tail(0.0625)),
    "phi3": (WITHOUT_SPECIAL, Tail()),
    "mixtral": ({"num_local_experts": 4}, Tail()),
    "gpt_neox": ({"num_key_value_heads": None}, Tail()),
    "gpt2": ({**NO_DROPOUT, "n_inner": 64, "intermediate_size": None, "num_key_value_heads": None}, Tail()),
    "qwen3_moe": ({"num_experts": 4, "moe_intermediate_size": 32, "num_experts_per_tok": 2}, Tail()),
}


def batch() -> MicroBatch:
    """Two rows of 24: documents of 5, 19 and 24 tokens."""
    generator = torch.Generator().manual_seed(1)
    tokens, labels = (torch.randint(3, 500, (2, 24), generator=generator) for _ in range(2))
    labels[0, 3:9] = IGNORED
    positions = torch.stack([torch.cat([torch.arange(5), torch.arange(19)]), torch.arange(24)])
    return MicroBatch.of(tokens, labels, positions)


def whole(model: Any, batch: MicroBatch) -> torch.Tensor:
    logits = model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False).logits
    return functional.cross_entropy(
        logits.float().flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORED, reduction="sum"
    )


def gradients(model: torch.nn.Module, total: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    (total / 40).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_loss_and_gradients_are_those_of_transformers(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(loss._ELEMENTS, "cpu", 7 * 512)  # seven rows at a time
    more, tail = ARCHITECTURES[kind]
    config = {key: value for key, value in {"model_type": kind, **SMALL, **more}.items() if value is not None}
    model: Any = build(Model(config=config), seed=1)
    assert model.config._attn_implementation == "documents"
    theirs = copy.deepcopy(model)
    theirs.set_attn_implementation("eager")
    ours = LossModel(model)
    assert not loss.logits_stand_whole(ours)
    assert ours.tail is not None and (ours.tail.scale, ours.tail.cap) == pytest.approx((tail.scale, tail.cap))
    total, expected = ours(batch()), whole(theirs, batch())
    torch.testing.assert_close(total, expected, rtol=1e-6, atol=0)
    made = gradients(model, total)
    for name, wanted in gradients(theirs, expected).items():
        torch.testing.assert_close(made[name], wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))


def test_under_autocast_queries_keys_and_the_head_are_bf16_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The residual stream and the rotation are fp32 there: left alone, no kernel for bf16 would be taken."""
    model: Any = build(Model(config={"model_type": "llama", **SMALL}), seed=1)
    seen, linear, attend = set(), loss.functional.linear, attention.scaled_dot_product_attention

    def seen_attending(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.update(("attention", tensor.dtype) for tensor in (q, k, v))
        return attend(q, k, v, *args, **kwargs)

    def seen_multiplying(part: torch.Tensor, matrix: torch.Tensor, *args: Any) -> torch.Tensor:
        seen.update(("product", tensor.dtype) for tensor in (part, matrix) if not torch.is_autocast_enabled("cpu"))
        return linear(part, matrix, *args)

    monkeypatch.setattr(attention, "scaled_dot_product_attention", seen_attending)
    monkeypatch.setattr(loss.functional, "linear", seen_multiplying)
    ours = LossModel(model)
    with torch.autocast("cpu", torch.bfloat16):
        ours(batch()).backward()
    assert seen == {("attention", torch.bfloat16), ("product", torch.bfloat16)}
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


def test_a_model_that_does_something_else_with_its_logits_keeps_them(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = build(Model(config={"model_type": "llama", **SMALL}), seed=1)
    own = type(model).forward

    def squared(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = own(self, *args, **kwargs)
        out.logits = out.logits**2
        return out

    monkeypatch.setattr(type(model), "forward", squared)
    ours = LossModel(model)
    assert ours.tail is None and loss.logits_stand_whole(torch.nn.Sequential(ours))
    theirs = copy.deepcopy(model)
    theirs.set_attn_implementation("eager")
    torch.testing.assert_close(ours(batch()), whole(theirs, batch()))


def test_a_model_with_sinks_computes_its_own_attention() -> None:
    config = {"model_type": "gpt_oss", **SMALL, "num_local_experts": 4, "head_dim": 8}
    assert build(Model(config=config), seed=1).config._attn_implementation == "eager"  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match="model.attention=documents: GptOssForCausalLM computes its own"):
        build(Model(config=config, attention="documents"), seed=1)


def test_the_head_still_answers_without_labels() -> None:
    model: Any = build(Model(config={"model_type": "llama", **SMALL}), seed=1)
    ids = batch().input_ids[:1]
    before = build(Model(config={"model_type": "llama", **SMALL}, attention="sdpa"), seed=1)(ids).logits  # type: ignore
    model.set_attn_implementation("sdpa")
    LossModel(model)
    torch.testing.assert_close(model(ids).logits, before)


def test_in_bf16_the_loss_and_the_heads_gradient_are_summed_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(loss._ELEMENTS, "cpu", 2 * 512)
    generator = torch.Generator().manual_seed(0)
    head = torch.nn.Linear(32, 512, bias=True)
    hidden = torch.randn(48, 32, generator=generator, requires_grad=True)
    labels = torch.randint(0, 512, (48,), generator=generator)
    expected = functional.cross_entropy(head(hidden), labels, reduction="sum")
    expected.backward()
    exact = [head.weight.grad, head.bias.grad, hidden.grad]
    loss.teach_the_head(head, Tail())
    half = hidden.detach().bfloat16().requires_grad_()
    head.weight.grad = head.bias.grad = None
    with torch.autocast("cpu", torch.bfloat16):
        total = head(half, labels, torch.arange(48))
    assert total.dtype == torch.float32
    total.backward()
    torch.testing.assert_close(total, expected, rtol=1e-3, atol=0)
    for made, wanted in zip([head.weight.grad, head.bias.grad, half.grad], exact, strict=True):
        assert made is not None and wanted is not None
        torch.testing.assert_close(made.float(), wanted, rtol=0.02, atol=0.02 * float(wanted.abs().max()))


def test_the_logits_never_stand_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(loss._ELEMENTS, "cpu", 8 * 4096)
    head = torch.nn.Linear(8, 4096, bias=False)
    loss.teach_the_head(head, Tail())
    hidden = torch.randn(512, 8, requires_grad=True)
    labels = torch.randint(0, 4096, (512,))
    made = []
    plain = functional.linear

    def seen(*args: Any) -> torch.Tensor:
        out = plain(*args)
        made.append(out.numel())
        return out

    monkeypatch.setattr(functional, "linear", seen)
    gc.collect()
    head(hidden, labels, torch.arange(512)).backward()
    assert max(made) == 8 * 4096 and sum(made) == 512 * 4096
    made.clear()
    head(hidden, labels, torch.arange(0, 512, 16)).backward()
    assert sum(made) == 32 * 4096, "rows whose targets do not count were computed"


def test_a_micro_batch_without_a_target_gives_zeros() -> None:
    """Every rank takes part in the sums of gradients, also one that has only prompts."""
    model: Any = build(Model(config={"model_type": "llama", **SMALL}), seed=1)
    only = batch()
    nothing = MicroBatch.of(only.input_ids, torch.full_like(only.labels, IGNORED), only.position_ids)
    total = LossModel(model)(nothing)
    assert total == 0
    made = gradients(model, total)
    assert set(made) == {name for name, _ in model.named_parameters()}
    assert all(not gradient.any() for gradient in made.values())


# --- documents ------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 300), min_size=1, max_size=12), st.none() | st.integers(1, 50))
def test_each_token_sees_its_own_document_up_to_itself(lengths: list[int], window: int | None) -> None:
    bounds = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    documents = Documents(bounds, max(lengths))
    total = sum(lengths)
    seen = torch.zeros(total, total, dtype=torch.bool)
    at = 0
    for n, mask in zip(documents.lengths, documents.masks(window), strict=True):
        tokens, at = slice(at, at + n), at + n
        seen[tokens, tokens] = torch.ones(n, n, dtype=torch.bool).tril() if mask is None else mask
    number = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    distance = torch.arange(total)[:, None] - torch.arange(total)
    expected = (number[:, None] == number) & (distance >= 0) & (distance < (window or total))
    assert torch.equal(seen, expected)


@given(st.lists(st.integers(1, 200), min_size=1, max_size=8), st.integers(1, 4), st.none() | st.integers(1, 50))
def test_attention_and_its_gradients_are_those_of_each_document_alone(
    lengths: list[int], times: int, window: int | None
) -> None:
    lengths = lengths[:1] * times if times > 1 else lengths  # also documents of one length
    documents = Documents(torch.tensor([0, *lengths]).cumsum(0).to(torch.int32), max(lengths))
    generator = torch.Generator().manual_seed(0)
    shapes = ((1, 4, sum(lengths), 8), *[(1, 2, sum(lengths), 8)] * 2)
    together = [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]
    alone = [tensor.detach().clone().requires_grad_() for tensor in together]
    out, _ = attention.attend(torch.nn.Module(), *together, None, documents=documents, sliding_window=window)  # type: ignore
    parts = []
    for q, k, v in zip(*(tensor.split(lengths, 2) for tensor in alone), strict=True):
        n = q.shape[2]
        distance = torch.arange(n)[:, None] - torch.arange(n)
        mask = (distance >= 0) & (distance < (window or n))
        k, v = (tensor.repeat_interleave(2, 1) for tensor in (k, v))
        parts.append(torch.nn.functional.scaled_dot_product_attention(q, k, v, mask))
    wanted = torch.cat(parts, 2).transpose(1, 2)
    torch.testing.assert_close(out, wanted, rtol=1e-5, atol=1e-5)
    out.square().sum().backward()
    wanted.square().sum().backward()
    for mine, theirs in zip(together, alone, strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-4)


def test_work_grows_with_the_documents_and_not_with_the_sequence() -> None:
    documents = Documents(torch.arange(0, 4097, 128, dtype=torch.int32), 128)
    assert sum(n * n for n in documents.lengths) == 32 * 128**2
