"""New tokens: the tokenizer that has them, and the pieces that each replaces. Torch-free.

The user's own tokenizer stays as it is; the run's lies in RUN_DIR/tokenizer, and the export has it.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

from durable import copy_private, write_atomic
from settings import ConfigError, read_json
from trainer.shape import Model

MULTIPLE = 64
"""An embedding that has to grow gets a multiple of so many rows, for the matrix units of GPUs."""
_BESIDE = ("special_tokens_map.json", "chat_template*")
"""Files that stay true beside a grown tokenizer.json; others (vocab.json, tokenizer.model) know no new token."""
_CONFIG = "tokenizer_config.json"


class Grown(NamedTuple):
    tokenizer: Any
    pieces: dict[int, list[int]]
    """Of each new token, by its id: the tokens that its text was before."""
    size: int
    """Ids of the tokenizer before."""


def read_texts(path: Path) -> list[str]:
    """The lines of a file: each is a token, with the spaces that it has. Raises ConfigError."""
    try:
        return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"model.new_tokens: {path}: {getattr(error, 'strerror', None) or error}") from None


def check_texts(texts: list[str]) -> None:
    """Raises ConfigError for what no tokenizer could take."""
    if not texts:
        raise ConfigError("model.new_tokens is empty: leave it out")
    seen: set[str] = set()
    for number, text in enumerate(texts, 1):
        if not text.strip():
            raise ConfigError(f"model.new_tokens: number {number} is empty: take it out")
        if text in seen:
            raise ConfigError(f"model.new_tokens: {text!r} stands there twice: keep one")
        seen.add(text)


def tokenizer_folder(model: Model, run_dir: Path) -> str:
    """Of the tokenizer that a run encodes with; with new tokens `write` makes it."""
    return str(run_dir / "tokenizer") if model.new_tokens else model.tokenizer_folder


def write(model: Model, folder: Path) -> None:
    """The tokenizer with its new tokens, as a folder that transformers reads. Raises ConfigError."""
    tokenizer, pieces, _ = grown(model)
    folder.mkdir(exist_ok=True)
    source = Path(model.tokenizer_folder)
    for pattern in _BESIDE:
        for file in filter(Path.is_file, source.glob(pattern)):
            copy_private(file, folder / file.name)
    if (source / _CONFIG).is_file():
        values = read_json(source / _CONFIG)
        if "added_tokens_decoder" in values:  # where it stands, it counts beside tokenizer.json
            tokens = tokenizer.get_added_tokens_decoder()
            values["added_tokens_decoder"] |= {str(token): _written(tokens[token]) for token in pieces}
        write_atomic(folder / _CONFIG, json.dumps(values, indent=2, ensure_ascii=False) + "\n")
    write_atomic(folder / "tokenizer.json", tokenizer.to_str(pretty=True) + "\n")


def _written(token: Any) -> dict[str, Any]:
    flags = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    return {flag: getattr(token, flag) for flag in flags}


def grown(model: Model) -> Grown:
    """Raises ConfigError when a text cannot become a token."""
    return with_texts(model.tokenizer_folder, tuple(model.new_tokens or ()))


@functools.lru_cache(maxsize=1)  # a model is looked at several times, and a large tokenizer takes a second to read
def with_texts(folder: str, texts: tuple[str, ...]) -> Grown:
    """Raises ConfigError when a text cannot become a token."""
    from tokenizers import AddedToken

    from trainer.data.encode import load_tokenizer

    tokenizer = load_tokenizer(Path(folder))
    taken = set(tokenizer.get_vocab().values())
    found = {text: _pieces(tokenizer, text) for text in texts}
    # A word is not looked for inside of longer words: what they were made of stays.
    words = {text: all(end.isalnum() or end == "_" for end in (text[0], text[-1])) for text in texts}
    tokenizer.add_tokens([AddedToken(text, single_word=words[text], normalized=False) for text in texts])
    pieces: dict[int, list[int]] = {tokenizer.token_to_id(text): ids for text, ids in found.items()}  # type: ignore[misc]
    if taken & pieces.keys():
        raise ConfigError(f"model.new_tokens: {folder}: the tokenizer's ids have gaps, and it would use one twice")
    return Grown(tokenizer, pieces, max(taken, default=-1) + 1)


def _pieces(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    known = tokenizer.token_to_id(text)
    if known is None and len(ids) == 1 and tokenizer.decode(ids, skip_special_tokens=False).strip() == text.strip():
        known = ids[0]
    if known is not None:
        raise ConfigError(f"model.new_tokens: {text!r} is one token already ({known}): take it out")
    if not ids:
        raise ConfigError(f"model.new_tokens: {text!r} is nothing to the tokenizer: take it out")
    return ids


def rows(model: Model, there: int) -> int:
    """Rows of an embedding that has so many: those are used first. Raises ConfigError."""
    if not model.new_tokens:
        return there
    new = grown(model)
    if new.size > there:
        raise ConfigError(
            f"model.tokenizer={model.tokenizer_folder} has {new.size} tokens, the model's vocab_size is {there}"
        )
    needed = max(new.pieces) + 1
    return there if needed <= there else -(-needed // MULTIPLE) * MULTIPLE


def make_room(config: Any, model: Model) -> None:
    """Rows for the new tokens in a Hugging Face config. Raises ConfigError."""
    text = config.get_text_config()
    text.vocab_size = rows(model, text.vocab_size)
