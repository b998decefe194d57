"""Checkpoints without a training, of weights alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.trainer.data.samples import write_tokenizer
from trainer import config
from trainer.checkpoint.format import BLOCK, VERSION, File, Manifest, Parameter, write_file, write_manifest
from trainer.checkpoint.image import Image
from trainer.engines.shard import Shard
from trainer.schema import TrainConfig


def settings(folder: Path, model: dict[str, Any], **sections: dict[str, Any]) -> TrainConfig:
    tokenizer = write_tokenizer(folder / "tokenizer")
    recipe: dict[str, Any] = {
        "name": "made",
        "model": {"tokenizer": tokenizer, "attention": "sdpa", **model},
        "data": {"train": ["train.jsonl"], "seq_len": 16},
        "train": {"global_batch_size": 4, "steps": 9},
        "optim": {"lr": 1e-3},
    }
    return config.resolve({**recipe, **sections}, "made.yaml")


def write_file_of(folder: Path, rank: int, image: Image, block: int | None = None) -> File:
    """`block`: bytes of a small buffer that it streams through; None: one that holds all of it."""
    name, buffer = f"rank-{rank:04d}.safetensors", torch.empty(block or image.size, dtype=torch.uint8)
    data = image.stream(buffer) if block else image.copy_to(buffer)
    return write_file(folder / name, data, image.size, lambda hashes: image.record(name, hashes))


def write_checkpoint(run_dir: Path, weights: Mapping[str, Tensor], step: int = 9) -> Path:
    """As two ranks would, which cut every parameter elsewhere than in the middle."""
    folder = run_dir / "checkpoints" / f"step-{step:08d}-e0001"
    folder.mkdir(parents=True)
    files = []
    for rank in range(2):
        shards = []
        for name, weight in weights.items():
            flat, shape = weight.detach().reshape(-1), tuple(weight.shape)
            start, stop = ((0, flat.numel() // 3), (flat.numel() // 3, flat.numel()))[rank]
            shards.append(Shard(name, shape, start, stop, {"weights": flat[start:stop]}, torch.tensor(step)))
        files.append(write_file_of(folder, rank, Image(shards, (0, 1), {})))
    narrow = {name for name, weight in weights.items() if weight.dtype == torch.bfloat16}
    known = {n: Parameter(list(w.shape), step, ["weights"] if n in narrow else []) for n, w in weights.items()}
    layout, state = {"engine": "ddp", "world_size": 2, "micro_batch_size": 2}, {"tokens_seen": 100, "evaluated": -1}
    write_manifest(folder, Manifest(VERSION, step, 1, layout, {}, "0" * 32, state, BLOCK, known, files))
    return folder
