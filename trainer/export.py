"""From a checkpoint of any engine and world size to a Hugging Face folder."""

from __future__ import annotations

import hashlib
import secrets
import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from durable import fsync_path
from trainer.checkpoint.load import Reader
from trainer.config import TrainConfig
from trainer.lora import inject
from trainer.weights import build

_TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "chat_template*",
    "vocab*",
    "merges.txt",
    "added_tokens.json",
)


def export(config: TrainConfig, checkpoint: Path, target: Path) -> str:
    """Write the checkpoint's model and its tokenizer to `target`, whole or not at all. Returns the tensors' sha256."""
    model: Any = build(config.model, config.train.seed)
    adapters = inject(model, config.lora, config.train.seed) if config.lora else None
    with Reader(checkpoint) as reader, torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            values = reader.read(name, "weights", 0, parameter.numel())
            parameter.copy_(torch.from_numpy(values).view_as(parameter))
    if adapters is not None:
        model = adapters.merge_and_unload(safe_merge=True)
    if config.train.bf16_passes:
        model.to(torch.bfloat16)
    for leftover in target.parent.glob(f".{target.name}-*"):  # of an export that was killed
        shutil.rmtree(leftover)
    temporary = target.with_name(f".{target.name}-{secrets.token_hex(4)}")
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(temporary)
    for pattern in _TOKENIZER_FILES:
        for file in filter(Path.is_file, Path(config.model.tokenizer_folder).glob(pattern)):
            shutil.copyfile(file, temporary / file.name)
    for file in temporary.iterdir():  # DONE is durable, so what it speaks of must be
        fsync_path(file)
    fsync_path(temporary)
    if target.exists():
        target.rename(temporary.with_name(f"{temporary.name}.old"))
        shutil.rmtree(temporary.with_name(f"{temporary.name}.old"))
    temporary.rename(target)
    fsync_path(target.parent)
    return fingerprint(dict(model.named_parameters()))


def fingerprint(tensors: dict[str, Tensor]) -> str:
    """sha256 over names and bytes of the tensors, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].detach().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
