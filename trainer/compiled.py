"""Layers by torch.compile: fewer and larger kernels, one graph for all layers that are alike."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch

from settings import ConfigError
from trainer import attention


def compile_layers(model: torch.nn.Module, device: torch.device, run_dir: Path) -> None:
    """Of transformers' own. What hooks do around them (sharding, recomputing, measuring) stays as it is.

    Raises ConfigError where nothing can be compiled.
    """
    layers = set(getattr(model, "_no_split_modules", None) or ())
    found = [module for module in model.modules() if type(module).__name__ in layers]
    if not found:
        raise ConfigError(f"train.compile: {type(model).__name__} does not say what its layers are: leave it out")
    if device.type == "cpu" and not (shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")):
        raise ConfigError("train.compile: there is no C++ compiler on this node (g++): leave it out")
    # In the run's folder: what is kept there is loaded as code, so it must not lie where others can write.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(run_dir / "compiled"))
    attention.register(compiled=True)
    for layer in found:
        layer.forward = torch.compile(layer.forward, dynamic=False)
