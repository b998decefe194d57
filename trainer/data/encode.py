"""From text and chats to tokens, and which of them are targets that count."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from settings import ConfigError


class Encoded(NamedTuple):
    """One document."""

    ids: list[int]
    loss: npt.NDArray[np.uint8]
    """Of each token: 1 when it is a target that counts."""


Encode = Callable[[list[Any]], list[Encoded | str]]
"""Each value as a document, or the reason why it cannot be one."""


def encoder(folder: Path, kind: Literal["text", "chat"]) -> tuple[Encode, str]:
    """How rows of this kind become tokens, and the smallest dtype that holds them. Raises ConfigError."""
    tokenizer = load_tokenizer(folder)
    dtype = "uint16" if max(tokenizer.get_vocab().values()) < 1 << 16 else "uint32"
    return (_text if kind == "text" else _chat)(tokenizer, folder), dtype


def load_tokenizer(folder: Path) -> Tokenizer:
    """The fast tokenizer of a folder. Raises ConfigError."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise ConfigError(f"{file}: there is no such file: model.tokenizer needs a fast tokenizer's folder")
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
        raise ConfigError(f"{file}: no tokenizer: {error}") from None
    # A tokenizer.json may carry the settings of its last use: documents would be cut or padded silently.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _text(tokenizer: Tokenizer, folder: Path) -> Encode:
    end = _end_of_text(tokenizer, folder)

    def encode(texts: list[str]) -> list[Encoded | str]:
        return [document(encoding.ids) for encoding in tokenizer.encode_batch_fast(texts)]

    def document(ids: list[int]) -> Encoded:
        if ids[-1:] != [end]:  # some tokenizers add it themselves
            ids = [*ids, end]
        loss = np.ones(len(ids), np.uint8)
        loss[0] = 0
        return Encoded(ids, loss)

    return encode


def _end_of_text(tokenizer: Tokenizer, folder: Path) -> int:
    file = folder / "tokenizer_config.json"
    try:
        token = msgspec.json.decode(file.read_bytes(), type=dict[str, Any]).get("eos_token") if file.is_file() else None
    except msgspec.DecodeError as error:
        raise ConfigError(f"{file}: {error}") from None
    text = token.get("content") if isinstance(token, dict) else token
    end = tokenizer.token_to_id(text) if isinstance(text, str) else None
    if end is None:
        raise ConfigError(f"{file}: eos_token={text} is no token of tokenizer.json: documents need an end")
    return end


def end_tokens(folder: Path, kind: Literal["text", "chat"]) -> list[int]:
    """What the model writes when it has nothing more to say: the end of a text; in a chat what the template puts behind
    the assistant's words, where that is a special token. Raises ConfigError."""
    tokenizer = load_tokenizer(folder)
    if kind == "text":
        return [_end_of_text(tokenizer, folder)]
    from transformers import AutoTokenizer

    template = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    chat = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "word"}]
    try:
        text = str(template.apply_chat_template(chat, tokenize=False))
    except Exception:  # a template is a program; this one wants more in a chat
        text = ""
    _, said, behind = text.rpartition("word")
    first = tokenizer.encode(behind.lstrip(), add_special_tokens=False).ids[:1] if said else []
    turn = [token for token in first if token in template.added_tokens_decoder]
    return [*turn, *([template.eos_token_id] if template.eos_token_id is not None else [])]


def _chat(tokenizer: Tokenizer, folder: Path) -> Encode:
    # Takes more than a second to import, and only chats need its templates.
    from transformers import AutoTokenizer

    template = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if not template.chat_template:
        raise ConfigError(f"{folder}: the tokenizer has no chat template: data.format=chat needs one")

    def render(messages: list[Any], ask: bool = False) -> str:
        return str(template.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask))

    def tokens(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False).ids  # the template wrote the special tokens

    def document(messages: list[Any]) -> Encoded | str:
        try:
            text, spans = _completions(messages, render)
        except Exception as error:  # a template is a program: jinja2 raises whatever it raises
            return f"the chat template refused it: {str(error)[:80]}"
        if any(not text.startswith(part) for span in spans for part in span):
            return "the chat template rewrites earlier turns"
        ids = tokens(text)
        loss = np.zeros(len(ids), np.uint8)
        for before, after in spans:
            loss[_common(tokens(before), ids) : _common(tokens(after), ids)] = 1
        loss[:1] = 0
        return Encoded(ids, loss) if loss.any() else "no completion tokens"

    return lambda chats: [document(messages) for messages in chats]


def _completions(messages: list[Any], render: Callable[..., str]) -> tuple[str, list[tuple[str, str]]]:
    """The chat as text; and for each turn of the assistant the text before it and the text up to its end.

    What lies between is what the model has to write, whatever the template puts around it.
    """
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    return render(messages), [(render(messages[:i], ask=True), render(messages[: i + 1])) for i in turns]


def _common(left: list[int], right: list[int]) -> int:
    """Length of the common start. In tokens: one that reaches over the edge counts as completion."""
    pairs = zip(left, right, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))
