"""A model's shape from its config alone: parameters as transformers counts them, FLOPs as the formula says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from settings import ConfigError
from trainer.engines import lean
from trainer.model import loss
from trainer.model.loss import find_tail
from trainer.plan.architecture import read
from trainer.plan.families import FAMILIES
from trainer.plan.memory import PIECE
from trainer.plan.state import STRETCH
from trainer.records.throughput import Cost

SMALL = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": 512, "pad_token_id": 0}
GIVEN: dict[str, list[dict[str, Any]]] = {
    "llama": [{}, {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "num_key_value_heads": 2, "head_dim": 32}],
    "ministral": [{"head_dim": 32}],
    "nemotron": [{"num_key_value_heads": 2}],
    "phi": [{}, {"qk_layernorm": True}],
    "stablelm": [{}, {"qk_layernorm": True, "use_qkv_bias": True, "num_key_value_heads": 2}],
    "cohere": [{}, {"use_qk_norm": True}],
    "gpt2": [{}, {"n_inner": 100}],
    "starcoder2": [{}, {"use_bias": False}],
    "seed_oss": [{}, {"attention_out_bias": True}],
    "helium": [{"head_dim": 16, "num_key_value_heads": 4}],
    "mixtral": [{"num_local_experts": 3}],
    "qwen2_moe": [{}, {"decoder_sparse_step": 2, "mlp_only_layers": [1]}],
    "deepseek_v2": [{}, {"q_lora_rank": None, "first_k_dense_replace": 1}],
    "glm4_moe": [{}, {"use_qk_norm": True}],
}  # fmt: skip


@pytest.mark.parametrize("kind", FAMILIES)
def test_parameters_are_those_of_transformers(kind: str) -> None:
    small = {FAMILIES[kind].names.get(name, name): value for name, value in SMALL.items()}
    for more in GIVEN.get(kind, [{}]):
        config = AutoConfig.for_model(kind, **small, **more)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        theirs = sum(parameter.numel() for parameter in model.parameters())
        said = read({"model_type": kind, **small, **more})
        assert said.known and said.parameters == theirs, (more, said.parameters - theirs)
        assert read(config.to_dict()).parameters == theirs, "by the file that transformers writes"
        assert find_tail(model) is not None, "logits would stand whole"
        largest = max(parameter.numel() for parameter in model.parameters())
        assert said.largest <= largest, "what is fused into one tensor is not looked at, and never more"


def test_flops_are_those_of_the_trainers_own_mfu() -> None:
    for kind in ("llama", "qwen3", "gemma2", "gpt_neox"):
        config = {"model_type": kind, **SMALL}
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
        cost = Cost.of(model)
        assert cost is not None
        assert read(config).flops(1000) == cost.flops(1000)


def test_published_sizes() -> None:
    llama = {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_key_value_heads": 8,
        "vocab_size": 128_256,
    }
    assert read(llama).parameters == 8_030_261_248  # Llama 3.1 8B
    assert round(read(llama).flops(8192) / 1e9, 2) == 57.91  # reference: 6 N_mm + 12 L H Q T
    mixtral = read({"model_type": "mixtral"})
    assert (mixtral.parameters, round(mixtral.active / 1e9, 1)) == (46_702_792_704, 12.9)
    assert (
        round(read({"model_type": "deepseek_v3"}).active / 1e9) == 38
    )  # 37 B and what its paper leaves out: embeddings


def test_what_is_not_known_is_an_estimate_or_an_error() -> None:
    found = read(
        {"model_type": "llama5", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 512}
    )
    assert not found.known
    with pytest.raises(ConfigError, match=r"model.config.hidden_size is missing: .*did you mean model_type=llama\?"):
        read({"model_type": "lama"})


def test_the_plan_reckons_with_the_pieces_that_the_trainer_takes() -> None:
    """It knows no torch, and so has them written down again."""
    assert {"cpu": PIECE[False], "cuda": PIECE[True]} == loss._ELEMENTS
    assert lean._STRETCH == STRETCH
