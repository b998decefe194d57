"""What a forward pass keeps for the backward pass, a token and a layer at a time. Torch-free.

Counted at each tensor that autograd saves in transformers' own modules and in trainer/model/attention.py (tests hold
the formulas against it): norms are computed in fp32, so a bf16 pass keeps fp32 copies; under autocast (ddp with fp32
weights) the residual is fp32, and every linear layer makes a bf16 copy of its input.
"""

from __future__ import annotations

from dataclasses import dataclass

from trainer.plan.architecture import Architecture, Layer
from trainer.schema import EveryK, Train

_ACTIVATIONS = {"relu": 1, "relu2": 2, "gelu": 2, "gelu_pytorch_tanh": 2, "gelu_new": 5}
"""Tensors of the MLP's width that stay where it has no gate, by the function: a kernel keeps its input, what is written
out in steps keeps each."""


@dataclass(frozen=True)
class Passes:
    """How forward and backward are computed."""

    compute: int
    """Bytes of a value in a matrix product."""
    residual: int
    """Bytes of a value between the layers."""
    on_gpu: bool
    whole_scores: bool
    """Attention scores stand whole (model.attention=eager)."""

    @property
    def autocast(self) -> bool:
        return self.compute < self.residual


def layer_bytes(model: Architecture, layer: Layer, passes: Passes, context: float) -> float:
    """Of one token in one layer; it attends to `context` tokens."""
    return _norms(model, passes) + _attention(model, passes, context) + _mlp(model, layer, passes)


def _norms(model: Architecture, passes: Passes) -> float:
    family, hidden, compute = model.family, model.hidden, passes.compute
    wide, narrow = 4 * hidden, passes.residual * hidden
    inside = {
        "rms": wide + narrow + 4,
        "gemma": 2 * wide + 4,
        "layer": narrow + 8,
        "layer without bias": 3 * wide + 8,
        "bare": wide + 8,
    }[family.norm]
    behind = 2 * wide + 4 if family.after else inside
    readers = (1 if family.fused else 3) + (2 if family.gated and not family.fused else 1)
    before = 0 if family.after else min(family.norms, 2)
    inputs = readers * compute if passes.autocast else compute * (2 if family.after else max(1, before))
    sources = 1 if family.parallel and family.norm == "layer" else before
    return sources * inside + max(0, family.norms - before) * behind + inputs * hidden


def _attention(model: Architecture, passes: Passes, context: float) -> float:
    heads, compute = model.heads, passes.compute
    keys = model.kv_heads if passes.on_gpu else heads  # the CPU's kernel takes a key for each head
    kept: float = compute * (heads + keys) * (model.head_dim + model.value_dim) + 4 * heads
    if model.qk_norm:
        normed = 4 if model.family.after or model.family.norm == "gemma" else compute
        kept += (4 + normed) * (heads + model.kv_heads) * model.head_dim
    if model.family.fused:
        kept += compute * (heads + model.kv_heads) * model.head_dim
    kept += (4 + 2 * compute) * model.latent
    scores = heads * context
    if model.softcap:
        return kept + 8 * scores
    if passes.whole_scores or model.family.sinks:
        return kept + (4 + compute % 4) * scores
    if not passes.on_gpu and (model.dropout or model.latent):  # no kernel there: in steps, and in fp32
        kept += 4 * scores * (3 if model.dropout else 1) + 4 * heads * (2 * model.head_dim + model.value_dim)
    return kept


def _mlp(model: Architecture, layer: Layer, passes: Passes) -> float:
    tensors = 4 if model.family.gated else _ACTIVATIONS.get(model.activation, 2)
    # transformers' experts are no linear layers: autocast passes them by.
    routed = passes.residual * (tensors * layer.routed + 2 * layer.routes * model.hidden)
    return passes.compute * tensors * layer.inner + routed


def selected_bytes(model: Architecture, layer: Layer, passes: Passes) -> float:
    """Of one token in one layer, where matrix products and attention alone are kept (trainer/model/recompute.py)."""
    heads, compute = model.heads, passes.compute
    attention = heads * model.head_dim + model.kv_heads * (model.head_dim + model.value_dim) + heads * model.value_dim
    mlp = (2 if model.family.gated else 1) * layer.inner + (model.hidden if layer.inner else 0)
    return compute * (attention + model.hidden + mlp) + 4 * heads


@dataclass(frozen=True)
class Kept:
    """Bytes of one token."""

    layers: float
    """Of all layers, when the forward pass is through."""
    again: float
    """Of the largest layer, while it is computed again."""
    around: float
    """Outside of the layers."""
    backward: float
    """Gradients on their way through the largest layer."""


def kept(model: Architecture, train: Train, passes: Passes, context: float) -> Kept:
    mode, stream = train.gradient_checkpointing, passes.residual * model.hidden
    every = mode.every_k if isinstance(mode, EveryK) else 1
    total = again = 0.0
    for layer in model.layers:
        full = layer_bytes(model, layer, passes, context)
        chosen = selected_bytes(model, layer, passes) if mode == "selective" else 0.0
        least = stream * (not train.activation_offload) + chosen
        recomputed = -(-layer.count // every) if mode else 0
        total += recomputed * least + (layer.count - recomputed) * full
        again = max(again, full - chosen if mode else 0.0)
    return Kept(total, again, _around(model, passes), _backward(model, passes))


def _around(model: Architecture, passes: Passes) -> float:
    """Last norm, rotary positions, and the numbers of a micro batch."""
    norm = (4 + passes.residual) * model.hidden if model.family.norm in ("rms", "gemma") else 4 * model.hidden
    rotary = 0 if model.positions else 2 * model.head_dim * passes.residual
    return norm + passes.residual * model.hidden + rotary + 5 * 8


def _backward(model: Architecture, passes: Passes) -> float:
    tensors = 2 if model.family.gated else 1
    inner = max(passes.compute * layer.inner + passes.residual * layer.routed for layer in model.layers)
    return tensors * inner + 2 * passes.residual * model.hidden
