"""General text beside the case: what the base model is made of, and what must not be forgotten; and its tokenizer.

English prose (recipes/prose.py). The tokenizer cuts numbers into digits, as Llama's does.
"""

from __future__ import annotations

import json
from pathlib import Path

import xxhash
from tokenizers import pre_tokenizers

from durable import write_atomic
from recipes import demo_data, prose

VOCABULARY = 4096


def make(folder: Path) -> None:
    """Writes train.jsonl (the base's), kept.jsonl (for replay), held_out.jsonl and tokenizer/, unless they stand."""
    stamp = folder / "general.json"
    source = b"".join(Path(str(file)).read_bytes() for file in (__file__, prose.__file__, demo_data.__file__))
    asked = json.dumps({"versions": prose.versions(), "builder": xxhash.xxh3_128_hexdigest(source)}) + "\n"
    if stamp.is_file() and stamp.read_text() == asked:
        return
    texts = prose.divided(prose.prose(), prose.SPLITS)
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer = demo_data.train_tokenizer(texts["train"], VOCABULARY, before=[digits])
    (folder / "tokenizer").mkdir(parents=True, exist_ok=True)
    for split, documents in texts.items():
        rows = (json.dumps({"text": document}, ensure_ascii=False) + "\n" for document in documents)
        write_atomic(folder / f"{split}.jsonl", "".join(rows))
    write_atomic(folder / "tokenizer" / "tokenizer.json", tokenizer.to_str())
    settings = json.dumps(demo_data.TOKENIZER_CONFIG, indent=2)
    write_atomic(folder / "tokenizer" / "tokenizer_config.json", f"{settings}\n")
    write_atomic(stamp, asked)  # last: it stands for all the others
