"""Small data for tests: a tokenizer, rows, prepared folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from recipes.demo_data import TOKENIZER_CONFIG, train_tokenizer
from trainer.data.prepare import prepare
from trainer.data.prepared import Prepared
from trainer.sources import Data

_SENTENCE = "the run goes on through limits and failures until it is done and every sample counts"
WORDS = _SENTENCE.split()


def write_tokenizer(folder: Path) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(train_tokenizer([_SENTENCE]).to_str())
    (folder / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_CONFIG))
    return str(folder)


def write_rows(path: Path, rows: list[Any]) -> str:
    """Rows as JSON lines; bytes as they are."""
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return str(path)


def texts(count: int) -> list[dict[str, str]]:
    """Documents of 1 to 60 words, all different."""
    return [{"text": " ".join(WORDS[i * k % 16] for k in range(1 + i * 7 % 60)) + f" {i}"} for i in range(count)]


def prepare_texts(folder: Path, count: int = 60, seq_len: int = 16) -> Prepared:
    data = Data(train=[write_rows(folder / "train.jsonl", texts(count))], seq_len=seq_len)
    return prepare(data, write_tokenizer(folder / "tokenizer"), folder / ".prepared", "train", say=lambda _: None)
