from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from msgspec.structs import replace

from settings import ConfigError
from trainer import config
from trainer.checkpoint import room
from trainer.schema import TrainConfig

LAYER = 12 * 2**30
"""Bytes of a checkpoint, at least, for each layer."""


def of(layers: int, keep: int, **more: int) -> TrainConfig:
    shape = {"model_type": "llama", "vocab_size": 512, "hidden_size": 8192, "num_attention_heads": 64}
    shape |= {"intermediate_size": 8192 * 4, "num_hidden_layers": layers}
    tree = {
        "name": "x",
        "model": {"config": shape, "tokenizer": "t"},
        "data": {"train": ["d.jsonl"], "seq_len": 64},
        "train": {"steps": 300, "global_batch_size": 1},
        "optim": {"lr": 1e-3},
        "checkpoint": {"keep": keep, **more},
    }
    return config.resolve(tree, "here")


def test_room_for_checkpoints(tmp_path: Path) -> None:
    """On the disk that is here, for models that are larger than it."""
    layers = shutil.disk_usage(tmp_path).free // LAYER + 1
    with pytest.raises(ConfigError, match=r"has [\d,.]+ GB free, and the newest checkpoint with the one that is being"):
        room.check(of(layers, keep=2), tmp_path)
    said = room.check(of(1, keep=500), tmp_path)
    assert said and said.startswith("checkpoints: 501 of ") and "checkpoint.keep, or make room" in said
    said = room.check(of(1, keep=200, keep_every=2), tmp_path)
    assert said and said.startswith("checkpoints: 351 of ")


def test_a_model_that_the_plan_does_not_know_is_not_refused(tmp_path: Path) -> None:
    known = of(1, keep=500)
    unknown = replace(known, model=replace(known.model, config={"model_type": "unheard-of"}))
    assert room.check(unknown, tmp_path) is None
