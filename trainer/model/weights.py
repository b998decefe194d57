"""The weights that a run starts from, a tensor at a time: what a rank holds is filled, and nothing else ever stands."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

from trainer.engines.shard import Shard
from trainer.model import new_rows, new_tokens
from trainer.model.model import materialize, pretrained, skeleton
from trainer.model.model_config import of_folder, open_weights, weight_files
from trainer.model.new_rows import Read
from trainer.shape import Model

_SOME = 64
"""Elements of a tensor that `sampled` reads."""


def build(settings: Model, seed: int, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """The whole model with these weights, on the CPU, the same on every rank. Raises ConfigError."""
    torch.manual_seed(seed)
    if settings.path is not None:
        return pretrained(settings, dtype)
    model = skeleton(settings, dtype)
    materialize(model, torch.device("cpu"))
    named = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in _drawn(settings, seed):
            if name in named:
                named[name].copy_(value)
    return model


def hollow(settings: Model, seed: int, dtype: torch.dtype) -> torch.nn.Module:
    """The model before `fill`; with its weights where it keeps what that does not know. Raises ConfigError."""
    model = skeleton(settings, dtype)
    trained = all(parameter.requires_grad for parameter in model.parameters())
    plain = trained and len(model.state_dict()) == len(list(model.named_parameters(remove_duplicate=False)))
    return model if plain else build(settings, seed, dtype)


def fill(shards: Iterable[Shard], settings: Model, seed: int) -> None:
    """What `build` would give, of just what these shards hold. Raises ConfigError."""
    wanted = {shard.name: shard for shard in shards}
    with ExitStack() as files, torch.no_grad():
        source = _drawn_parts(settings, seed) if settings.path is None else _folder_parts(settings, seed, files)
        for name, read in source:
            shard = wanted.pop(name, None)
            if shard is not None and shard.start < shard.stop:
                shard.tensors["weights"].copy_(read(shard.start, shard.stop))
    assert not wanted, min(wanted)


def _parts(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Read]]:
    for name, tensor in tensors:
        yield name, partial(_range, tensor.detach().reshape(-1), 1)


# --- drawn ----------------------------------------------------------------------------------------------------


def _drawn_parts(settings: Model, seed: int) -> Iterator[tuple[str, Read]]:
    return _parts(_drawn(settings, seed))


def _drawn(settings: Model, seed: int) -> Iterator[tuple[str, Tensor]]:
    """By the model's own rule, module by module, in fp32; of tied parameters each under its name."""
    from transformers.initialization import guard_torch_init_functions

    model: Any = skeleton(settings)
    torch.manual_seed(seed)
    if _reaches_down(model):
        materialize(model, torch.device("cpu"))
        for module in model.modules():
            module._is_hf_initialized = False
        model.initialize_weights()
        yield from model.named_parameters()
        return
    for prefix, module, owner in _from_below(model, model, ""):
        if not any(True for _ in module.parameters(recurse=False)):
            continue
        module.to_empty(device="cpu", recurse=False)
        with torch.no_grad(), guard_torch_init_functions():
            owner._init_weights(module)
        yield from module.named_parameters(prefix, recurse=False)
        module.to_empty(device="meta", recurse=False)


def _from_below(module: torch.nn.Module, owner: Any, prefix: str) -> Iterator[tuple[str, torch.nn.Module, Any]]:
    """Name, module, and the model whose rule holds for it, in the order in which transformers draws."""
    from transformers import PreTrainedModel

    for name, child in module.named_children():
        yield from _from_below(child, child if isinstance(child, PreTrainedModel) else owner, f"{prefix}.{name}")
    yield prefix.removeprefix("."), module, owner


def _reaches_down(model: Any) -> bool:
    """The rule for a module writes also to parameters of modules below it (a meta tensor counts its writes)."""
    for _, module, owner in _from_below(model, model, ""):
        own = set(module.parameters(recurse=False))
        below = [parameter for parameter in module.parameters() if parameter not in own]
        before = [parameter._version for parameter in below]
        with torch.no_grad():
            owner._init_weights(module)
        if [parameter._version for parameter in below] != before:
            return True
    return False


# --- from a folder --------------------------------------------------------------------------------------------


def _folder_parts(settings: Model, seed: int, files: ExitStack) -> Iterator[tuple[str, Read]]:
    """Read where they lie; else by transformers, and then the whole model stands on this rank for a while."""
    found = in_folder(settings, files)
    if found is None:
        torch.manual_seed(seed)
        yield from _parts(pretrained(settings).named_parameters())
    else:
        yield from found.items()


def in_folder(settings: Model, files: ExitStack) -> dict[str, Read] | None:
    """Every tensor of the model where it lies; None: the folder does not have each under its name and in its shape, so
    transformers must load it, which knows what older names became. Raises ConfigError."""
    model = skeleton(settings)
    slices = of_folder(settings, lambda path: _slices(Path(path), files))
    named = held(model)
    shapes = {name: list(tensor.shape) for name, tensor in named.items()}
    growing = new_rows.names(model) if settings.new_tokens else set()
    for name in growing & slices.keys():
        shapes[name][0] = min(shapes[name][0], slices[name].get_shape()[0])
    there = all(name in slices and slices[name].get_shape() == shape != [] for name, shape in shapes.items())
    if not there or _converted(model, slices):
        return None
    reads: dict[str, Read] = {
        name: partial(_range, slices[name], math.prod(shape[1:])) for name, shape in shapes.items()
    }
    if growing:
        pieces = new_tokens.grown(settings).pieces
        reads |= {name: new_rows.reader(reads[name], shapes[name], pieces) for name in growing}
    return reads


def sampled(settings: Model) -> str | None:
    """Tells a folder's weights from others of the same shape: a hash over some elements of each tensor, since all of a
    large model would take minutes. None: they lie in no safetensors. Raises ConfigError."""
    digest = xxhash.xxh3_64()
    with ExitStack() as files:
        slices = of_folder(settings, lambda path: _slices(Path(path), files))
        for name, at in sorted(slices.items()):
            shape = at.get_shape()
            digest.update(f"{name} {shape} {at.get_dtype()}\n".encode())
            if shape:
                some = at[(*[slice(0, 1)] * (len(shape) - 1), slice(0, min(_SOME, shape[-1])))]
                digest.update(some.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest() if slices else None


def held(model: torch.nn.Module) -> dict[str, Tensor]:
    """Parameters and the buffers that a folder keeps; what is tied once, under the name that comes first."""
    first: dict[int, str] = {}
    tensors = model.state_dict(keep_vars=True)
    return {name: tensor for name, tensor in tensors.items() if first.setdefault(id(tensor), name) == name}


def _range(at: Any, row: int, start: int, stop: int) -> Tensor:
    """Whole rows are read: at both ends up to one more than asked for."""
    first = start // row
    rows: Tensor = at[first : -(-stop // row)]
    return rows.reshape(-1)[start - first * row : stop - first * row]


def _slices(folder: Path, files: ExitStack) -> dict[str, Any]:
    """Every tensor of a folder's safetensors files, unread; none where there are no such files."""
    found = {}
    for path in weight_files(folder):
        file = files.enter_context(open_weights(path, "pt"))
        found.update({name: file.get_slice(name) for name in file.keys()})  # noqa: SIM118  no mapping
    return found


def _converted(model: Any, names: Iterable[str]) -> bool:
    """Whether transformers would give any of these another name, or compute what it stands for, or untie it."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    tied = model.all_tied_weights_keys
    return any(name in tied or rename_source_key(name, renamings, converters) != (name, None) for name in names)


def saved_as_named(model: Any, names: Iterable[str]) -> bool:
    """Whether transformers would save each of these under this very name, and as it is."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import PrefixChange, WeightConverter, WeightRenaming, rename_source_key

    loading = get_model_conversion_mapping(model, add_legacy=False)
    rules = [rule.reverse_transform() for rule in reversed(loading) if not isinstance(rule, PrefixChange)]
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    return all(rename_source_key(name, renamings, converters, reverse=True) == (name, None) for name in names)
