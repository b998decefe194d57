"""Where an exported model comes from: for programs (provenance.json) and for people (README.md)."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
import transformers

from trainer.checkpoint.format import Manifest, name_of
from trainer.schema import TrainConfig
from trainer.shape import Model

_CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
---

# {name}

{what}

| | |
|---|---|
| base model | {base} |
| optimizer steps | {step:,} |
| targets in the loss | {tokens:,} tokens |
| data | {format}, fingerprint `{data}` |
| attempts | {attempts} |
| weights | {elements:,} in {dtype} |

`provenance.json` has what the run was asked for, and hashes of it, of the data and of the weights. How good the model
is, and under which licence it may be used, nobody has written here yet.

## Load

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # this one
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
{use}
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=100)[0]))
```
"""
_TEXT = """inputs = tokenizer("Once upon a time", return_tensors="pt")"""
_CHAT = """\
messages = [{"role": "user", "content": "Who are you?"}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)"""


def provenance(
    settings: TrainConfig, manifest: Manifest, dtype: torch.dtype, elements: int, sha256: str
) -> dict[str, Any]:
    """What the model was made from. It names no path, since the folder may be published."""
    recipe = json.dumps(manifest.config, sort_keys=True)
    return {
        "run": settings.name,
        "base_model": base_name(settings.model),
        "fork": Path(settings.fork).name if settings.fork else None,
        "steps": manifest.step,
        "attempts": manifest.epoch,
        "tokens_seen": manifest.state["tokens_seen"],
        "data": manifest.data,
        "config_sha256": hashlib.sha256(recipe.encode()).hexdigest(),
        "config": manifest.config,
        "layout": manifest.layout,
        "weights": {"elements": elements, "dtype": name_of(dtype), "sha256": sha256},
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }


def card(settings: TrainConfig, about: dict[str, Any]) -> str:
    """README.md."""
    base = about["base_model"] or f"none: weights drawn from seed {settings.train.seed}"
    return _CARD.format(
        name=settings.name,
        what=_what(settings),
        base=f"{base}; then another run's {about['fork']}" if about["fork"] else base,
        step=about["steps"],
        tokens=about["tokens_seen"],
        format=settings.purpose(),
        data=about["data"],
        attempts=about["attempts"],
        elements=about["weights"]["elements"],
        dtype=about["weights"]["dtype"],
        use=_CHAT if settings.result == "chat" else _TEXT,
    )


def _what(settings: TrainConfig) -> str:
    if settings.lora is None:
        return "All weights were trained with Outlast."
    beside = ", beside weights in 4 bits, and merged into the exact ones" if settings.lora.quantize else ", and merged"
    return f"LoRA of rank {settings.lora.r} was trained with Outlast{beside}."


def base_name(model: Model) -> str | None:
    """What people call the model that training began with; None: with a new one."""
    if model.path is None:
        return None
    cached = [part for part in Path(model.path).parts if part.startswith("models--")]  # in the cache of Hugging Face
    return cached[-1].removeprefix("models--").replace("--", "/") if cached else Path(model.path).name
