"""How the decoders of transformers differ from a Llama: which of their layers exist, and what their configs leave out.

Field names are those of a Hugging Face config; a field that is named here in place of a value says it itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Said = bool | str
"""A value, or the field of the config that says it."""


@dataclass(frozen=True)
class Experts:
    """The MLPs of a mixture, of which a router gives each token some."""

    number: str = "num_experts"
    each: str = "num_experts_per_tok"
    """Experts that a token goes through."""
    width: str = "moe_intermediate_size"
    shared: str | None = None
    """How many experts every token goes through besides."""
    shared_width: str | None = None
    """Or: the width of the one that every token goes through, behind a gate of its own."""
    dense_first: str | None = None
    """So many layers at the begin have one MLP."""
    sparse_step: bool = False
    """`decoder_sparse_step` and `mlp_only_layers` say which layers have experts."""
    bias: bool = False


@dataclass(frozen=True)
class Family:
    defaults: dict[str, Any] = field(default_factory=dict)
    """What transformers takes where a config says nothing."""
    names: dict[str, str] = field(default_factory=dict)
    """What the config calls a field: usual name -> its own."""
    gated: bool = True
    qkv_bias: Said = "attention_bias"
    out_bias: Said = "attention_bias"
    mlp_bias: Said = "mlp_bias"
    head_bias: Said = False
    norm: Literal["rms", "gemma", "layer", "layer without bias", "bare"] = "rms"
    """gemma: an RMS norm that multiplies in fp32; bare: without parameters."""
    norms: int = 2
    """Of a layer."""
    qk_norm: Literal["", "head", "each head", "width"] = ""
    """Queries and keys have norms of a head's width, one for each head, or of all heads' width."""
    qk_norm_if: str | None = None
    """The field by which they exist."""
    positions: int | None = None
    """Learned positions: max_position_embeddings and so many rows more."""
    experts: Experts | None = None
    latent: bool = False
    """Keys and values come from a latent vector (MLA)."""
    sinks: bool = False
    """A learned score for each head, that no token has: attention is computed by the model itself."""
    fused: bool = False
    """Queries, keys and values are parts of one tensor, which stays as long as one of them."""
    parallel: bool = False
    """Attention and MLP start from the same residual."""
    after: bool = False
    """Norms stand behind attention and MLP alone, not before."""


def _shape(
    *sizes: int, kv: int | None = None, head: int | None = None, act: str = "silu", tied: bool = False, **more: Any
) -> dict[str, Any]:
    """`sizes`: vocabulary, hidden, inner, layers, heads, positions."""
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    said = dict(zip((*names, "max_position_embeddings"), sizes, strict=True))
    more |= {"num_key_value_heads": kv, "head_dim": head, "hidden_act": act, "tie_word_embeddings": tied}
    return {key: value for key, value in {**said, **more}.items() if value}


def _experts(number: int, each: int, width: int | None, first: int, shared: int) -> dict[str, Any]:
    return {
        "n_routed_experts": number,
        "num_experts_per_tok": each,
        "moe_intermediate_size": width,
        "first_k_dense_replace": first,
        "n_shared_experts": shared,
    }


_GPT2_NAMES = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "intermediate_size": "n_inner",
    "max_position_embeddings": "n_positions",
    "hidden_act": "activation_function",
    "attention_dropout": "attn_pdrop",
}
_LATENT: dict[str, Any] = {
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "qk_nope_head_dim": 128,
}
_ROUTED = Experts("n_routed_experts", shared="n_shared_experts", dense_first="first_k_dense_replace")
_PLAIN: dict[str, Any] = {"gated": False, "norm": "layer", "qkv_bias": True, "out_bias": True, "mlp_bias": True}
"""The older ones."""
_NO_BIAS: dict[str, Any] = {"qkv_bias": False, "out_bias": False, "mlp_bias": False}

FAMILIES: dict[str, Family] = {
    "llama": Family(_shape(32_000, 4096, 11_008, 32, 32, 2048)),
    "arcee": Family(_shape(32_000, 2560, 18_432, 32, 32, 4096, act="relu2"), gated=False),
    "mistral": Family(_shape(32_000, 4096, 14_336, 32, 32, 131_072, kv=8), **_NO_BIAS),
    "ministral": Family(_shape(32_000, 4096, 14_336, 32, 32, 131_072, kv=8), **_NO_BIAS),
    "qwen2": Family(
        _shape(151_936, 4096, 22_016, 32, 32, 32_768, kv=32), qkv_bias=True, out_bias=False, mlp_bias=False
    ),
    "qwen3": Family(_shape(151_936, 4096, 22_016, 32, 32, 32_768, kv=32, head=128), mlp_bias=False, qk_norm="head"),
    "gemma": Family(
        _shape(256_000, 3072, 24_576, 28, 16, 8192, kv=16, head=256, act="gelu_pytorch_tanh", tied=True),
        mlp_bias=False,
        norm="gemma",
    ),
    "gemma2": Family(
        _shape(
            256_000,
            2304,
            9216,
            26,
            8,
            8192,
            kv=4,
            head=256,
            act="gelu_pytorch_tanh",
            tied=True,
            attn_logit_softcapping=50.0,
        ),
        mlp_bias=False,
        norm="gemma",
        norms=4,
    ),
    "gemma3_text": Family(
        _shape(262_208, 2304, 9216, 26, 8, 131_072, kv=4, head=256, act="gelu_pytorch_tanh", tied=True),
        mlp_bias=False,
        norm="gemma",
        norms=4,
        qk_norm="head",
    ),
    "granite": Family(_shape(32_000, 4096, 11_008, 32, 32, 2048)),
    "phi": Family(
        _shape(51_200, 2048, 8192, 24, 32, 2048, act="gelu_new"),
        head_bias=True,
        norms=1,
        qk_norm="head",
        qk_norm_if="qk_layernorm",
        **_PLAIN,
    ),
    "phi3": Family(_shape(32_064, 3072, 8192, 32, 32, 4096), fused=True, **_NO_BIAS),
    "gpt2": Family(
        _shape(50_257, 768, 0, 12, 12, 1024, act="gelu_new", tied=True, attention_dropout=0.1),
        _GPT2_NAMES,
        positions=0,
        **_PLAIN,
    ),
    "gpt_bigcode": Family(
        _shape(50_257, 768, 0, 12, 12, 1024, kv=1, act="gelu_pytorch_tanh", tied=True, attention_dropout=0.1),
        _GPT2_NAMES,
        positions=0,
        **_PLAIN,
    ),
    "gptj": Family(
        _shape(50_400, 4096, 0, 28, 16, 2048, act="gelu_new"),
        _GPT2_NAMES,
        head_bias=True,
        norms=1,
        **(_PLAIN | {"qkv_bias": False, "out_bias": False}),
    ),
    "gpt_neox": Family(
        _shape(50_432, 6144, 24_576, 44, 64, 2048, act="gelu", attention_bias=True),
        parallel=True,
        fused=True,
        **(_PLAIN | {"qkv_bias": "attention_bias", "out_bias": "attention_bias"}),
    ),
    "opt": Family(
        _shape(50_272, 768, 3072, 12, 12, 2048, act="relu", tied=True, enable_bias=True),
        {"intermediate_size": "ffn_dim", "hidden_act": "activation_function"},
        gated=False,
        qkv_bias="enable_bias",
        out_bias="enable_bias",
        mlp_bias="enable_bias",
        norm="layer",
        positions=2,
    ),
    "olmo": Family(_shape(50_304, 4096, 11_008, 32, 32, 2048), mlp_bias=False, norm="bare"),
    "olmo2": Family(_shape(50_304, 4096, 11_008, 32, 32, 2048), mlp_bias=False, qk_norm="width", after=True),
    "olmo3": Family(_shape(50_304, 4096, 11_008, 32, 32, 2048), mlp_bias=False, qk_norm="width", after=True),
    "stablelm": Family(
        _shape(50_304, 2560, 6912, 32, 32, 4096, kv=32),
        qkv_bias="use_qkv_bias",
        out_bias=False,
        mlp_bias=False,
        norm="layer",
        qk_norm="each head",
        qk_norm_if="qk_layernorm",
    ),
    "starcoder2": Family(
        _shape(49_152, 3072, 12_288, 30, 24, 4096, kv=2, act="gelu_pytorch_tanh", tied=True, use_bias=True),
        gated=False,
        qkv_bias="use_bias",
        out_bias="use_bias",
        mlp_bias="use_bias",
        norm="layer",
    ),
    "cohere": Family(
        _shape(256_000, 8192, 22_528, 40, 64, 8192, tied=True),
        mlp_bias=False,
        norm="layer without bias",
        norms=1,
        qk_norm="each head",
        qk_norm_if="use_qk_norm",
    ),
    "cohere2": Family(
        _shape(256_000, 8192, 22_528, 40, 64, 8192, tied=True), mlp_bias=False, norm="layer without bias", norms=1
    ),
    "smollm3": Family(_shape(128_256, 2048, 11_008, 36, 16, 32_768, kv=4, tied=True)),
    "glm": Family(
        _shape(151_552, 4096, 13_696, 40, 32, 131_072, kv=2, head=128, attention_bias=True),
        out_bias=False,
        mlp_bias=False,
    ),
    "glm4": Family(
        _shape(151_552, 4096, 13_696, 40, 32, 131_072, kv=2, head=128, attention_bias=True),
        out_bias=False,
        mlp_bias=False,
        norms=4,
    ),
    "helium": Family(_shape(48_000, 2560, 7040, 24, 20, 4096, kv=20, head=128), out_bias=False),
    "nemotron": Family(_shape(256_000, 6144, 24_576, 32, 48, 4096, act="relu2"), gated=False, norm="layer"),
    "seed_oss": Family(
        _shape(155_136, 4096, 27_648, 64, 80, 524_288, kv=8, head=128, attention_bias=True),
        out_bias="attention_out_bias",
    ),
    "ernie4_5": Family(
        _shape(103_424, 1024, 3072, 18, 16, 131_072, kv=2, head=128, tied=True),
        qkv_bias="use_bias",
        out_bias="use_bias",
        mlp_bias="use_bias",
    ),
    "exaone4": Family(_shape(102_400, 4096, 16_384, 32, 32, 2048, kv=32), qk_norm="head", after=True, **_NO_BIAS),
    "mixtral": Family(
        _shape(32_000, 4096, 14_336, 32, 32, 131_072, kv=8, num_local_experts=8, num_experts_per_tok=2),
        experts=Experts(number="num_local_experts", width="intermediate_size"),
        **_NO_BIAS,
    ),
    "qwen2_moe": Family(
        _shape(
            151_936,
            2048,
            5632,
            24,
            16,
            32_768,
            kv=16,
            num_experts=60,
            num_experts_per_tok=4,
            moe_intermediate_size=1408,
            shared_expert_intermediate_size=5632,
            qkv_bias=True,
        ),
        qkv_bias="qkv_bias",
        out_bias=False,
        mlp_bias=False,
        experts=Experts(shared_width="shared_expert_intermediate_size", sparse_step=True),
    ),
    "qwen3_moe": Family(
        _shape(
            151_936, 2048, 6144, 24, 32, 32_768, kv=4, num_experts=128, num_experts_per_tok=8, moe_intermediate_size=768
        ),
        {"num_experts": "num_local_experts"},
        mlp_bias=False,
        qk_norm="head",
        experts=Experts(sparse_step=True),
    ),
    "olmoe": Family(
        _shape(50_304, 2048, 2048, 16, 16, 4096, num_experts=64, num_experts_per_tok=8),
        mlp_bias=False,
        qk_norm="width",
        experts=Experts(width="intermediate_size"),
    ),
    "granitemoe": Family(
        _shape(32_000, 4096, 11_008, 32, 32, 2048, num_local_experts=8, num_experts_per_tok=2),
        mlp_bias=False,
        experts=Experts(number="num_local_experts", width="intermediate_size"),
    ),
    "gpt_oss": Family(
        _shape(
            201_088,
            2880,
            2880,
            36,
            64,
            131_072,
            kv=8,
            head=64,
            attention_bias=True,
            num_local_experts=128,
            num_experts_per_tok=4,
        ),
        experts=Experts(number="num_local_experts", width="intermediate_size", bias=True),
        sinks=True,
    ),
    "deepseek_v2": Family(
        _shape(102_400, 4096, 11_008, 32, 32, 2048, **_LATENT, **_experts(64, 1, 1407, 0, 2)),
        mlp_bias=False,
        experts=_ROUTED,
        latent=True,
    ),
    "deepseek_v3": Family(
        _shape(129_280, 7168, 18_432, 61, 128, 4096, **_LATENT, **_experts(256, 8, 2048, 3, 1)),
        mlp_bias=False,
        experts=_ROUTED,
        latent=True,
    ),
    "glm4_moe": Family(
        _shape(151_552, 4096, 10_944, 46, 96, 131_072, kv=8, **_experts(128, 8, 1408, 1, 1)),
        out_bias=False,
        mlp_bias=False,
        qk_norm="head",
        qk_norm_if="use_qk_norm",
        experts=_ROUTED,
    ),
}
"""By model_type."""
