"""Layers by torch.compile: fewer and larger kernels, one graph for all layers that are alike."""

from __future__ import annotations

import json
import os
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from durable import write_atomic
from settings import ConfigError
from trainer.data.batches import MicroBatch
from trainer.engines.stopwatch import between, mark
from trainer.layout import BatchLayout
from trainer.model import attention
from trainer.model.loss import LossModel
from trainer.model.model import materialize, skeleton
from trainer.runtime import device_name
from trainer.schema import TrainConfig

_LEAST = 1.02
"""Times that a layer has to be faster."""
_ROUNDS = 7


def compile_layers(model: torch.nn.Module, device: torch.device, run_dir: Path) -> None:
    """Of transformers' own. What hooks do around them (sharding, recomputing, measuring) stays as it is.

    Raises ConfigError where nothing can be compiled.
    """
    found = _layers(model)
    if device.type == "cpu" and not (shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")):
        raise ConfigError("train.compile: there is no C++ compiler on this node (g++): leave it out")
    # In the run's folder: what is kept there is loaded as code, so it must not lie where others can write.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(run_dir / "compiled"))
    attention.register(compiled=True)
    for layer in found:
        layer.forward = torch.compile(layer.forward, dynamic=False)


def _layers(model: torch.nn.Module) -> list[torch.nn.Module]:
    names = set(getattr(model, "_no_split_modules", None) or ())
    found = [module for module in model.modules() if type(module).__name__ in names]
    if not found:
        raise ConfigError(f"train.compile: {type(model).__name__} does not say what its layers are: leave it out")
    return found


# --- auto -----------------------------------------------------------------------------------------------------


def decided(
    settings: TrainConfig, layout: BatchLayout, device: torch.device, run_dir: Path, say: Callable[[str], None]
) -> bool:
    """By one rank: whether `train.compile: auto` compiles. Measured once in a run for each kind of device and micro
    batch, so that a resume does as the attempt before it did."""
    file = run_dir / "compile.json"
    place = f"{device_name(device)}, torch {torch.__version__}, {layout.micro_batch_size} sequences"
    known: dict[str, list[float] | None] = json.loads(file.read_text()) if file.exists() else {}
    if place not in known:
        try:
            known[place] = list(trial(settings, layout, device, run_dir))
        except Exception as error:  # of a compiler, of a model built another way: as if nothing had been asked for
            known[place] = None
            say(f"train.compile=auto: a layer could not be compiled: {' '.join(str(error).split())[:200]}")
        write_atomic(file, json.dumps(known) + "\n")
    if (seconds := known[place]) is None:
        return False
    plain, compiled = seconds
    pays = plain >= _LEAST * compiled
    times = f"a layer takes {1e3 * plain:.3g} ms, compiled {1e3 * compiled:.3g} ms"
    say(f"train.compile=auto: {times}: {'compiled' if pays else 'left as it is'}")
    return pays


def trial(settings: TrainConfig, layout: BatchLayout, device: torch.device, run_dir: Path) -> tuple[float, float]:
    """Median seconds of one layer's forward and backward pass on a full micro batch, plain and compiled."""
    model, train = _with_one_layer(settings, device), settings.train
    shape = (layout.micro_batch_size, settings.data.seq_len)
    tokens = torch.zeros(shape, dtype=torch.int64)
    batch = MicroBatch.of(tokens, tokens, torch.arange(shape[1]).expand(shape)).to(device)
    (layer,), loss_model = _layers(model), LossModel(model)
    plain = layer.forward
    compile_layers(model, device, run_dir)
    times: dict[Any, list[float]] = {plain: [], layer.forward: []}

    def passes() -> float:
        begun = mark(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=train.bf16_passes and not train.bf16_weights):
            hidden = loss_model.hidden(batch)
        hidden.backward(torch.ones_like(hidden))
        ended = mark(device)
        if device.type == "cuda":
            ended.synchronize()
        return between(begun, ended)

    for _ in range(2 + _ROUNDS):
        for forward, taken in times.items():
            layer.forward = forward
            taken.append(passes())
    attention.register()
    first, second = (statistics.median(taken[2:]) for taken in times.values())  # the first ones compile and warm up
    return first, second


class _Given(torch.nn.Module):
    """Embeddings that are the same whatever they are asked for."""

    def __init__(self, width: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self._row = torch.nn.Parameter(torch.randn(width, dtype=dtype, device=device))

    def forward(self, ids: Tensor) -> Tensor:
        return self._row.expand(*ids.shape, -1).contiguous()


def _with_one_layer(settings: TrainConfig, device: torch.device) -> torch.nn.Module:
    """Of the run's model, with weights by chance; the embeddings and the head are not there."""
    dtype = torch.bfloat16 if settings.train.bf16_weights else torch.float32
    model: Any = skeleton(settings.model, dtype)
    first = _layers(model)[0]
    stack = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) and m[0] is first)
    del stack[1:]
    model.set_input_embeddings(_Given(model.get_input_embeddings().embedding_dim, dtype, device))
    for part in model.base_model.children():
        materialize(part, device)
        part.to(device)
        for parameter in part.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
    return model  # type: ignore[no-any-return]
