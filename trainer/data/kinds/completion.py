"""A prompt and its completion a row."""

from __future__ import annotations

from typing import Any

from trainer.data.columns import string
from trainer.data.readers import Unusable
from trainer.data.values import Completion


def value(row: dict[str, Any], names: dict[str, str]) -> Completion:
    pair = Completion(string(row, names["prompt"]), string(row, names["completion"]))
    if not pair.completion.strip():
        raise Unusable("no completion tokens")
    return pair
