"""The tensors of a trained model as its Hugging Face folder holds them, read and written piece by piece: none of them
ever stands whole, but for a layer whose adapters are merged."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trainer.checkpoint.format import header, memory_of
from trainer.checkpoint.load import Reader
from trainer.model import lora
from trainer.model.model import skeleton
from trainer.model.new_rows import Read
from trainer.model.weights import held, in_folder, saved_as_named
from trainer.schema import TrainConfig

PIECE = 1 << 20
"""Elements that are read, rounded and written at a time."""
SHARD = 5 * 10**9
"""Bytes of a file's tensors, unless one tensor has more."""


class Exported(NamedTuple):
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    pieces: Callable[[], Iterator[Tensor]]
    """Its flat values, one part after the other, in any dtype."""

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


# --- what there is ----------------------------------------------------------------------------------------


def tensors(
    settings: TrainConfig, reader: Reader, dtype: torch.dtype, files: ExitStack
) -> tuple[Any, list[Exported]] | None:
    """The model without its parameters, and what its folder keeps, by name. None: that cannot be had piece by piece,
    since transformers saves it under other names than the model has, or loads so what was not trained.

    Raises ConfigError when the checkpoint is another model's.
    """
    model: Any = skeleton(settings.model, dtype)
    kept = held(model)
    if not saved_as_named(model, kept):
        return None
    frozen = {name for name, tensor in kept.items() if settings.lora or not tensor.requires_grad}
    base = in_folder(settings.model, files) if settings.model.path and frozen else {}
    if base is None or any(name not in base and kept[name].is_meta for name in frozen):
        return None
    with_adapters, layers = _with_adapters(settings)
    out = []
    for name, tensor in kept.items():
        if name in layers:
            pieces = partial(_merged, with_adapters, layers[name], base, reader)
        else:
            read = _trained(reader, name, tensor) if name not in frozen else base.get(name) or partial(_of, tensor)
            pieces = partial(_pieces, read, tensor.numel())
        out.append(Exported(model.all_tied_weights_keys.get(name, name), tuple(tensor.shape), tensor.dtype, pieces))
    left_out = model._keys_to_ignore_on_save or ()
    return model, sorted((one for one in out if one.name not in left_out), key=lambda one: one.name)


def _with_adapters(settings: TrainConfig) -> tuple[Any, dict[str, str]]:
    """The model as LoRA has trained it, without its parameters, and its layers that have adapters."""
    if settings.lora is None:
        return None, {}
    model: Any = skeleton(settings.model)
    lora.inject(model, lora.with_tokens(settings.lora, settings.model), settings.train.seed)
    return model, lora.layers(model)


def _trained(reader: Reader, name: str, tensor: Tensor) -> Read:
    reader.parameter(name, tensor.shape)
    return lambda start, stop: torch.from_numpy(reader.read(name, "weights", start, stop))


def _of(tensor: Tensor, start: int, stop: int) -> Tensor:
    return tensor.reshape(-1)[start:stop]


def _pieces(read: Read, elements: int) -> Iterator[Tensor]:
    for start in range(0, elements, PIECE):
        yield read(start, min(start + PIECE, elements))


def _merged(model: Any, layer: str, base: dict[str, Read], reader: Reader) -> Iterator[Tensor]:
    owner = layer.removesuffix(".token_adapter")

    def read(name: str, parameter: Tensor) -> Tensor:
        if parameter.requires_grad:
            return _trained(reader, f"{layer}.{name}", parameter)(0, parameter.numel())
        return base[f"{owner}.{name.removeprefix('base_layer.')}"](0, parameter.numel())

    yield from lora.merged(model.get_submodule(layer), read).reshape(-1).split(PIECE)


# --- written ----------------------------------------------------------------------------------------------


def write(folder: Path, found: list[Exported]) -> str:
    """safetensors files, with an index where there are several, named as transformers does. Returns the sha256 over
    names and bytes of the tensors, in their order."""
    shards = _shards(found)
    digest, weight_map = hashlib.sha256(), {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors" if len(shards) > 1 else "model.safetensors"
        _write_shard(folder / name, shard, digest)
        weight_map.update({one.name: name for one in shard})
    if len(shards) > 1:
        elements = sum(math.prod(one.shape) for one in found)
        metadata = {"total_parameters": elements, "total_size": sum(one.size for one in found)}
        text = json.dumps({"metadata": metadata, "weight_map": weight_map}, indent=2, sort_keys=True)
        (folder / "model.safetensors.index.json").write_text(text + "\n", encoding="utf-8")
    return digest.hexdigest()


def _shards(found: list[Exported]) -> list[list[Exported]]:
    shards: list[list[Exported]] = [[]]
    for one in found:
        if shards[-1] and sum(other.size for other in shards[-1]) + one.size > SHARD:
            shards.append([])
        shards[-1].append(one)
    return shards


def _write_shard(path: Path, shard: list[Exported], digest: Any) -> None:
    head, _ = header(((one.name, one.dtype, one.shape, one.size) for one in shard), {"format": "pt"})
    with open(path, "xb") as file:
        file.write(head)
        for one in shard:
            digest.update(one.name.encode())
            for piece in one.pieces():
                data = bytes_of(piece.to(one.dtype))
                digest.update(data)
                file.write(data)


def fingerprint(named: dict[str, Tensor]) -> str:
    """What `write` returns, of tensors that stand in memory."""
    digest = hashlib.sha256()
    for name in sorted(named):
        digest.update(name.encode())
        digest.update(bytes_of(named[name]))
    return digest.hexdigest()


def bytes_of(tensor: Tensor) -> memoryview:
    """Of a tensor on the CPU."""
    return memory_of(tensor.detach().reshape(-1).contiguous().view(torch.uint8).numpy())
