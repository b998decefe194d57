"""Proof that a run needs no network: everything is there, and nothing asks for more."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from settings import ConfigError
from trainer.data.encode import encoder
from trainer.data.prepare import fingerprint
from trainer.model.model_config import weight_files
from trainer.schema import TrainConfig
from trainer.sources import Source

_ASKED: list[str] = []


def forbid() -> None:
    """From here on this process reaches nothing but itself; what asks is refused, and remembered."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # read when the library is imported
    sys.addaudithook(_refuse)


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo"):
        connection = arguments[0]
        if isinstance(connection, socket.socket) and connection.family == socket.AF_UNIX:
            return
        wanted = arguments[0] if event == "socket.getaddrinfo" else arguments[1]
        _ASKED.append(str(wanted))
        raise ConfigError(f"something asks the network for {wanted}")


def check(config: TrainConfig, tokenizer: str, cache: Path, sources: Mapping[str, Source]) -> list[str]:
    """What is there, a line each; `sources` by what the user calls them. Raises ConfigError for what is missing, or
    would be fetched."""
    found = [_model(Path(config.model.path))] if config.model.path else []
    for name, source in sources.items():
        if not (cache / fingerprint(source, config.data.cut_for(source), tokenizer, cache)).is_dir():
            raise ConfigError(f"{name} is not prepared in {cache}: launch.py prepare RECIPE does it")
        encoder(Path(tokenizer), source.form)
        found.append(f"{name}: prepared in {cache}")
    if _ASKED:
        raise ConfigError(f"something asked the network for {', '.join(dict.fromkeys(_ASKED))}")
    return [*found, f"tokenizer: {tokenizer}", "nothing was fetched"]


def _model(folder: Path) -> str:
    """A Hugging Face model's folder, whose weights are whole, has what goes with them. Raises ConfigError."""
    from transformers import AutoConfig

    files = weight_files(folder)
    for file in (folder / "config.json", *(files or [folder / "model.safetensors"])):
        if not file.is_file():
            raise ConfigError(f"{folder}: there is no {file.name}: the model's folder is not whole")
    try:
        AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder}: {str(error).partition(chr(10))[0]}") from None
    size = sum(file.stat().st_size for file in files)
    return f"model: {folder}, {len(files):,} files of weights, {size / 1e9:.1f} GB"
