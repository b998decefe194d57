"""The model: Hugging Face's, by its public API; nothing is fetched at run time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from settings import ConfigError
from trainer.model import attention, new_rows, new_tokens
from trainer.model.model_config import config_of, of_folder
from trainer.shape import Model


def skeleton(settings: Model, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """The model with its buffers, and its parameters on the meta device. Raises ConfigError."""
    from transformers.models.auto.modeling_auto import AutoModelForCausalLM

    config = config_of(settings)
    new_tokens.make_room(config, settings)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=_attention(settings))
    except Exception as error:  # a value that only the model's own code finds wrong, as a KeyError most often
        raise ConfigError(f"model.config: {type(error).__name__} {' '.join(str(error).split())[:300]}") from None
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty_like(buffer, device="cpu"))
    model.initialize_weights()  # on the meta device nothing is drawn
    return _ready(model, settings)


def pretrained(settings: Model, dtype: torch.dtype = torch.float32, **more: Any) -> torch.nn.Module:
    """The whole model of a folder, on the CPU; rows that it lacks are drawn. `more`: transformers' own words. Raises
    ConfigError."""
    from transformers.models.auto.modeling_auto import AutoModelForCausalLM

    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": _attention(settings), "local_files_only": True}
    if settings.rope is not None:
        options["config"] = config_of(settings)
    model = of_folder(settings, lambda path: AutoModelForCausalLM.from_pretrained(path, **options, **more))
    if settings.new_tokens:
        rows = new_tokens.rows(settings, model.get_input_embeddings().num_embeddings)
        new_rows.append(model, rows, new_tokens.grown(settings).pieces)
    return _ready(model, settings)


def _ready(model: Any, settings: Model) -> torch.nn.Module:
    _forget_lengths(model)
    return with_attention(model, settings)


def _forget_lengths(model: Any) -> None:
    """Make dynamic frequencies a function of the batch. transformers keeps those of the longest batch so far, which a
    resumed run has not seen."""
    for module in model.modules():
        if getattr(module, "rope_type", None) == "dynamic":
            module.register_forward_pre_hook(_forget)


def _forget(module: Any, _: Any) -> None:
    module.max_seq_len_cached = module.original_max_seq_len
    module.inv_freq = module.original_inv_freq


def _attention(settings: Model) -> str | None:
    """As transformers calls it; None: its own choice, for now."""
    return None if settings.attention in ("auto", attention.NAME) else settings.attention


def with_attention(model: Any, settings: Model) -> torch.nn.Module:
    """Attention by documents, where the model lets others compute it. Raises ConfigError."""
    able = model._supports_attention_backend and not any(name.endswith("sinks") for name, _ in model.named_parameters())
    if settings.attention == attention.NAME and not able:
        raise ConfigError(f"model.attention={attention.NAME}: {type(model).__name__} computes its own: leave it out")
    if settings.attention == attention.NAME or settings.attention == "auto" and able:
        attention.register()
        model.set_attn_implementation(attention.NAME)
    return model  # type: ignore[no-any-return]


def materialize(
    model: torch.nn.Module,
    device: torch.device,
    dtype: torch.dtype | None = None,
    place: Callable[[torch.nn.Parameter], None] = lambda _: None,
) -> None:
    """Memory for each parameter that is on the meta device, whatever it holds then; tied ones stay one.

    `place` is called with each before the next has its memory.
    """
    made: dict[Tensor, torch.nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.is_meta:
                continue
            if parameter not in made:
                made[parameter] = torch.nn.Parameter(torch.empty_like(parameter, dtype=dtype, device=device))
                place(made[parameter])
            setattr(module, name, made[parameter])
