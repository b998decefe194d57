"""Two kinds of real text that stand wherever Outlast's own environment does: English prose, and C++.

General: the prose of recipes/prose.py. Domain: headers of C++ that torch ships. No paragraph of prose and no header
stands twice, nor one that differs only in names of code; each file belongs to one split alone, by the hash of its name.
The same bytes for the same versions.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import xxhash

from durable import write_atomic
from recipes import prose
from recipes.demo_data import TOKENIZER_CONFIG, train_tokenizer
from recipes.prose import Document, divided, folder_of

HEADERS = ("ATen/core", "c10/core", "c10/util")
"""Written by hand; those of ATen/ops and others are generated, and much alike."""
SPLITS = {"general": prose.SPLITS, "domain": ("train", "held_out")}


def make(folder: Path) -> str:
    """Writes a JSONL file for each split, and a tokenizer trained on the general one, unless they stand; hands back
    the fingerprint of all."""
    stamp = folder / "corpus.json"
    source = b"".join(Path(str(module)).read_bytes() for module in (__file__, prose.__file__))
    asked = {"versions": prose.versions(), "builder": xxhash.xxh3_128_hexdigest(source)}
    if stamp.is_file() and (found := json.loads(stamp.read_text()))["asked"] == asked:
        return str(found["fingerprint"])
    kinds = {"general": prose.prose(), "domain": headers()}
    files = {
        f"{kind}_{split}.jsonl": _rows(texts)
        for kind, documents in kinds.items()
        for split, texts in divided(documents, SPLITS[kind]).items()
    }
    tokenizer = train_tokenizer([json.loads(line)["text"] for line in files["general_train.jsonl"].splitlines()])
    files["tokenizer/tokenizer.json"] = tokenizer.to_str()
    files["tokenizer/tokenizer_config.json"] = json.dumps(TOKENIZER_CONFIG, indent=2) + "\n"
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / name, text)
    fingerprint = xxhash.xxh3_128_hexdigest(json.dumps(files, sort_keys=True).encode())
    write_atomic(stamp, json.dumps({"asked": asked, "fingerprint": fingerprint}) + "\n")  # last: it stands for all
    return fingerprint


def headers() -> Iterator[Document]:
    root = folder_of("torch") / "include"
    for name in HEADERS:
        for path in sorted((root / name).rglob("*.h")):
            yield path.relative_to(root).as_posix(), [path.read_text(encoding="utf-8", errors="replace").strip()]


def _rows(texts: list[str]) -> str:
    return "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
