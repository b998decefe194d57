"""Checkpoints without a training, of weights alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.trainer.data.samples import write_tokenizer
from trainer import config
from trainer.checkpoint.format import BLOCK, VERSION, Manifest, Parameter, write_file, write_manifest
from trainer.config import TrainConfig


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


def write_checkpoint(run_dir: Path, weights: Mapping[str, Tensor], step: int = 9) -> Path:
    """As two ranks would, which cut every parameter elsewhere than in the middle."""
    folder = run_dir / "checkpoints" / f"step-{step:08d}-e0001"
    folder.mkdir(parents=True)
    flat = {name: weight.detach().reshape(-1) for name, weight in weights.items()}
    narrow = {name for name, weight in flat.items() if weight.dtype == torch.bfloat16}
    arrays = {name: (w.view(torch.uint16) if name in narrow else w).numpy() for name, w in flat.items()}
    files = []
    for rank in range(2):
        parts = {
            name: ((0, size // 3), (size // 3, size))[rank] for name, size in ((n, a.size) for n, a in arrays.items())
        }
        ranges = [(name, start, stop, {"weights": arrays[name][start:stop]}) for name, (start, stop) in parts.items()]
        files.append(write_file(folder / f"rank-{rank:04d}.safetensors", ranges, {}))
    known = {n: Parameter(list(w.shape), step, ["weights"] if n in narrow else []) for n, w in weights.items()}
    layout, state = {"engine": "ddp", "world_size": 2, "micro_batch_size": 2}, {"tokens_seen": 100, "evaluated": -1}
    write_manifest(folder, Manifest(VERSION, step, 1, layout, {}, "0" * 32, state, BLOCK, known, files))
    return folder
