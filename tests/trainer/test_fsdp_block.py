"""A block of transformers' FSDP settings, in both spellings, and one line for what it cannot mean here."""

from __future__ import annotations

from typing import Any

import pytest

from settings import ConfigError
from trainer.engines.fsdp.block import translated


def read(block: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    return translated({"kind": "fsdp", "config": block})


@pytest.mark.parametrize("prefix", ["", "fsdp_"])
def test_both_spellings_mean_the_same(prefix: str) -> None:
    options = {
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "transformer_layer_cls_to_wrap": "LlamaDecoderLayer,OtherLayer",
        "state_dict_type": "FULL_STATE_DICT",
        "offload_params": False,
        "use_orig_params": True,
    }
    engine, notes = read({"fsdp": "full_shard auto_wrap", "fsdp_config": {prefix + k: v for k, v in options.items()}})
    assert engine == {"kind": "fsdp", "reshard": True, "layers": ["LlamaDecoderLayer", "OtherLayer"]}
    assert [note.split(": ")[1] for note in notes] == ["state_dict_type=FULL_STATE_DICT", "use_orig_params=True"]


@pytest.mark.parametrize(
    ("block", "engine"),
    [
        ({}, {}),
        ({"fsdp": True}, {}),
        ({"fsdp": ["shard_grad_op", "auto_wrap"]}, {"reshard": False}),
        ({"fsdp_config": {"reshard_after_forward": False}}, {"reshard": False}),
        ({"fsdp_config": {"fsdp_reshard_after_forward": "FULL_SHARD"}}, {"reshard": True}),
        ({"fsdp_config": {"transformer_layer_cls_to_wrap": ["A", "B"]}}, {"layers": ["A", "B"]}),
        ({"fsdp": "hybrid_shard auto_wrap"}, {"reshard": True, "hybrid": True}),
        ({"fsdp": "hybrid_shard_zero2 offload"}, {"reshard": False, "hybrid": True, "offload": True}),
        ({"fsdp_config": {"fsdp_offload_params": True}}, {"offload": True}),
    ],
)
def test_what_it_says(block: dict[str, Any], engine: dict[str, Any]) -> None:
    assert read(block)[0] == {"kind": "fsdp", **engine}


@pytest.mark.parametrize(
    ("block", "line"),
    [
        ({"fsdp": "no_shard"}, "no_shard: every rank holds everything: that is engine.kind=ddp"),
        ({"fsdp": "full_shart"}, "full_shart: did you mean full_shard?"),
        ({"fsdp_config": {"fsdp_auto_wrap_policy": "SIZE_BASED_WRAP"}}, "take TRANSFORMER_BASED_WRAP"),
        ({"fsdp_config": {"transformer_layer_to_wrap": "A"}}, "did you mean transformer_layer_cls_to_wrap?"),
        ({"fsdp_config": {"reshard_after_forward": "maybe"}}, "true or false is expected"),
        ({"fsdp_config": "fsdp.json"}, "fsdp_config=fsdp.json: its keys are expected here"),
        ({"fsdp_confg": {}}, "a block of transformers has fsdp and fsdp_config"),
    ],
)
def test_one_line_for_what_it_cannot_mean(block: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as error:
        read(block)
    assert line in str(error.value) and str(error.value).startswith("engine.config: ")
