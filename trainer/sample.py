"""`python -m trainer.sample EXPORT PROMPT`: what an exported model writes, greedily."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

NEW_TOKENS = 40


def sample(export: Path, prompt: str) -> str:
    """The prompt and its continuation."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(export, local_files_only=True)
    model: Any = AutoModelForCausalLM.from_pretrained(export, local_files_only=True)
    inputs = tokenizer(prompt, return_tensors="pt")
    out = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=tokenizer.eos_token_id)
    return str(tokenizer.decode(out[0], skip_special_tokens=True))


if __name__ == "__main__":
    print(sample(Path(sys.argv[1]), sys.argv[2]))
