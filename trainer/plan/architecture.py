"""A decoder's parameters and FLOPs from its Hugging Face config alone. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from settings import ConfigError, nearest
from trainer.plan.families import FAMILIES, Experts, Family, Said


@dataclass(frozen=True)
class Layer:
    """Layers of a model that are alike: numbers of one."""

    count: int
    matrices: int
    """Parameters in matrix products, of all experts."""
    active: int
    """Of these what one token uses."""
    vectors: int
    """Parameters of norms and biases."""
    inner: int
    """Width of the MLP that every token goes through: of the layer, or of its shared experts."""
    routed: int
    """Width of the experts that one token is routed to, together."""
    routes: int
    """Their number."""
    sides: int
    """Inputs and outputs of its linear layers, summed: the parameters of adapters of rank 1. (What keeps all experts in
    one tensor is no linear layer.)"""
    largest: int
    """Parameters of its largest tensor."""

    @property
    def parameters(self) -> int:
        return self.matrices + self.vectors


@dataclass(frozen=True)
class Architecture:
    model_type: str
    family: Family
    known: bool
    """Else it is taken for a Llama, and its numbers are estimates."""
    hidden: int
    vocabulary: int
    heads: int
    kv_heads: int
    head_dim: int
    """Of queries and keys."""
    value_dim: int
    activation: str
    tied: bool
    positions: int
    """Rows of a learned embedding of positions; 0: there is none."""
    layers: tuple[Layer, ...]
    head_bias: bool = False
    qk_norm: bool = False
    latent: int = 0
    """Width of the vectors from which queries, keys and values come (MLA)."""
    softcap: bool = False
    """Attention scores are bent to stay below a cap, for which there is no kernel: they stand whole."""
    dropout: bool = False
    """Of attention: no kernel for packed documents then."""

    @property
    def depth(self) -> int:
        return sum(layer.count for layer in self.layers)

    @property
    def embedding(self) -> int:
        """Parameters of the input embedding."""
        return self.vocabulary * self.hidden

    @property
    def root(self) -> int:
        """Parameters outside of the layers: embeddings, head, last norm."""
        head = self.vocabulary * self.head_bias + (0 if self.tied else self.embedding)
        return self.embedding + head + self.positions * self.hidden + norm_size(self.family, self.hidden)

    @property
    def parameters(self) -> int:
        return self.root + sum(layer.count * layer.parameters for layer in self.layers)

    @property
    def active(self) -> int:
        """Parameters that one token uses."""
        return self.parameters - sum(layer.count * (layer.matrices - layer.active) for layer in self.layers)

    @property
    def sides(self) -> int:
        """Parameters of adapters of rank 1 beside every linear layer of the decoder."""
        return sum(layer.count * layer.sides for layer in self.layers)

    @property
    def matmul(self) -> int:
        """Active parameters in matrix products: all but an input embedding of its own and learned positions."""
        return self.active - self.positions * self.hidden - (0 if self.tied else self.embedding)

    @property
    def largest(self) -> int:
        """Parameters of the largest tensor."""
        return max(self.embedding, *(layer.largest for layer in self.layers))

    def flops(self, context: float) -> float:
        """Forward and backward of one token that attends to `context` tokens: the causal mask is not discounted, what
        is computed again does not count (trainer/records/throughput.py)."""
        return 6 * self.matmul + 6 * self.depth * self.heads * (self.head_dim + self.value_dim) * context

    def with_vocabulary(self, rows: int) -> Architecture:
        return replace(self, vocabulary=rows)


def norm_size(family: Family, width: int) -> int:
    return {"bare": 0, "layer": 2}.get(family.norm, 1) * width


def read(config: Mapping[str, Any], source: str = "model.config") -> Architecture:
    """Of a config.json, or of a recipe's model.config. Raises ConfigError for one that says too little."""
    kind = str(config.get("model_type"))
    known = kind in FAMILIES
    if not known and isinstance(config.get("text_config"), Mapping):
        config = {"model_type": kind, **config["text_config"]}
    said = _Said(config, FAMILIES.get(kind, Family()), source)
    family, hidden, heads = said.family, said.number("hidden_size"), said.number("num_attention_heads")
    head_dim = said.get("head_dim") or hidden // heads
    value_dim = head_dim
    if family.latent:
        head_dim, value_dim = said.number("qk_nope_head_dim") + said.number("qk_rope_head_dim"), said.get("v_head_dim")
    positions = 0 if family.positions is None else said.number("max_position_embeddings") + family.positions
    architecture = Architecture(
        *(kind, family, known, hidden, said.number("vocab_size"), heads),
        *(said.get("num_key_value_heads") or heads, head_dim, value_dim, said.activation),
        *(bool(said.get("tie_word_embeddings", False)), positions, ()),
        head_bias=said.flag(family.head_bias),
        qk_norm=bool(family.qk_norm) and (family.qk_norm_if is None or bool(said.get(family.qk_norm_if))),
        latent=(said.get("q_lora_rank") or 0) + said.number("kv_lora_rank") if family.latent else 0,
        softcap=bool(said.get("attn_logit_softcapping")),
        dropout=bool(said.get("attention_dropout")),
    )
    return replace(architecture, layers=tuple(_layers(architecture, said)))


@dataclass(frozen=True)
class _Said:
    """A config with what transformers takes where it says nothing."""

    config: Mapping[str, Any]
    family: Family
    source: str

    def get(self, name: str, default: Any = None) -> Any:
        for key in (self.family.names.get(name, name), name):
            if self.config.get(key) is not None:
                return self.config[key]
        return self.family.defaults.get(name, default)

    def number(self, name: str) -> int:
        value = self.get(name)
        if not isinstance(value, int):
            near = nearest(str(self.config.get("model_type")), FAMILIES)
            hint = (
                f": did you mean model_type={near}?" if near and self.config.get("model_type") not in FAMILIES else ""
            )
            raise ConfigError(f"{self.source}.{name} is missing: the plan knows no default of this model{hint}")
        return value

    @property
    def activation(self) -> str:
        return str(self.config.get("hidden_activation") or self.get("hidden_act") or "silu")

    def flag(self, said: Said) -> bool:
        return bool(self.get(said, False)) if isinstance(said, str) else said


def _layers(model: Architecture, said: _Said) -> list[Layer]:
    family, depth = model.family, said.number("num_hidden_layers")
    attention, vectors = _attention(model, said)
    vectors += family.norms * norm_size(family, model.hidden)
    width = int(said.get("intermediate_size") or 4 * model.hidden)
    plain = _plain_layer(model, attention, vectors + _mlp_bias(model, said, width), width)
    experts = family.experts or _experts_of_unknown(said)
    if experts is None or not said.get(experts.number):
        return [replace(plain, count=depth)]
    sparse = _sparse_layer(model, experts, attention, vectors, said)
    without = _dense_layers(experts, said, depth)
    return [replace(layer, count=count) for layer, count in ((plain, without), (sparse, depth - without)) if count]


Linear = tuple[int, int]
"""Inputs and outputs of a linear layer."""


def _sizes(linears: list[Linear]) -> tuple[int, int]:
    """Parameters, and inputs and outputs summed."""
    return sum(a * b for a, b in linears), sum(a + b for a, b in linears)


def _plain_layer(model: Architecture, attention: list[Linear], vectors: int, width: int) -> Layer:
    linears = [*attention, *_mlp(model, width)]
    matrices, sides = _sizes(linears)
    return Layer(0, matrices, matrices, vectors, width, 0, 0, sides, max(a * b for a, b in linears))


def _sparse_layer(model: Architecture, experts: Experts, attention: list[Linear], vectors: int, said: _Said) -> Layer:
    number, each, width = said.number(experts.number), said.number(experts.each), said.number(experts.width)
    shared = (said.get(experts.shared) or 0) * width if experts.shared else 0
    gate: list[Linear] = []
    if experts.shared_width:
        shared, gate = said.number(experts.shared_width), [(model.hidden, 1)]
    beside, sides = _sizes([*attention, *(_mlp(model, shared) if shared else []), *gate])
    one, router = _sizes(_mlp(model, width))[0], number * model.hidden
    if experts.bias:
        vectors += number * (2 * width + model.hidden) + number
    return Layer(
        *(0, beside + router + number * one, beside + router + each * one, vectors, shared, each * width, each),
        *(sides, number * 2 * width * model.hidden),  # transformers keeps all experts in one tensor
    )


def _attention(model: Architecture, said: _Said) -> tuple[list[Linear], int]:
    """Its matrices, and the parameters of its vectors."""
    family, hidden = model.family, model.hidden
    if family.latent:
        return _latent_attention(model, said)
    wide, narrow = model.heads * model.head_dim, model.kv_heads * model.head_dim
    vectors = said.flag(family.qkv_bias) * (wide + 2 * narrow) + said.flag(family.out_bias) * hidden
    if model.qk_norm:  # a norm of each head has no bias
        width = {"head": 2 * model.head_dim}.get(family.qk_norm, wide + narrow)
        vectors += width if family.qk_norm == "each head" else norm_size(family, width)
    linears = [(hidden, wide), (hidden, narrow), (hidden, narrow), (wide, hidden)]
    return linears, vectors + family.sinks * model.heads


def _latent_attention(model: Architecture, said: _Said) -> tuple[list[Linear], int]:
    hidden, heads, queries = model.hidden, model.heads, said.get("q_lora_rank")
    if "q_lora_rank" in said.config:  # null: queries have no latent vector
        queries = said.config["q_lora_rank"]
    kv, rope, nope = (said.number(name) for name in ("kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim"))
    wide, bias = heads * model.head_dim, said.flag("attention_bias")
    linears = [(hidden, queries), (queries, wide)] if queries else [(hidden, wide)]
    linears += [(hidden, kv + rope), (kv, heads * (nope + model.value_dim)), (heads * model.value_dim, hidden)]
    return linears, kv + (queries or 0) + bias * ((queries or 0) + kv + rope + hidden)


def _mlp(model: Architecture, width: int) -> list[Linear]:
    return [(model.hidden, width)] * (2 if model.family.gated else 1) + [(width, model.hidden)]


def _mlp_bias(model: Architecture, said: _Said, width: int) -> int:
    return said.flag(model.family.mlp_bias) * (width * (2 if model.family.gated else 1) + model.hidden)


def _experts_of_unknown(said: _Said) -> Experts | None:
    names = ("num_experts", "num_local_experts", "n_routed_experts")
    found = next((name for name in names if said.get(name)), None)
    if found is None or said.config.get("model_type") in FAMILIES:
        return None
    width = "moe_intermediate_size" if said.get("moe_intermediate_size") else "intermediate_size"
    return Experts(found, width=width, shared="n_shared_experts", dense_first="first_k_dense_replace")


def _dense_layers(experts: Experts, said: _Said, depth: int) -> int:
    """How many layers have one MLP."""
    if experts.dense_first:
        return min(depth, said.get(experts.dense_first) or 0)
    if experts.sparse_step:
        step, alone = said.get("decoder_sparse_step") or 1, said.get("mlp_only_layers") or []
        return sum(index in alone or bool((index + 1) % step) for index in range(depth))
    return 0
