"""One document a row."""

from __future__ import annotations

from typing import Any

from trainer.data.columns import string
from trainer.data.readers import Unusable


def value(row: dict[str, Any], names: dict[str, str]) -> str:
    text = string(row, names["text"])
    if not text.strip():
        raise Unusable("empty")
    return text
