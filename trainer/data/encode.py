"""From text and chats to tokens, and which of them are targets that count."""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable
from datetime import date
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import msgspec
import numpy as np
from tokenizers import Encoding, Tokenizer

from settings import ConfigError
from trainer.data.values import Chat, Completion, Dtype, Form


class Encoded(NamedTuple):
    """One document."""

    ids: array[int]
    """uint32. The library gives lists: an array in the place of each at once costs less than arrays of many later."""
    loss: bytes
    """Of each token: 1 when it is a target that counts."""


def _ids(encoding: Encoding) -> array[int]:
    return array("I", encoding.ids)


Encode = Callable[[list[Any]], list[Encoded | str]]
"""Each value as a document, or the reason why it cannot be one."""


def encoder(folder: Path, form: Form) -> tuple[Encode, Dtype]:
    """How values of this form become tokens, and the smallest dtype that holds them. Raises ConfigError."""
    tokenizer = load_tokenizer(folder)
    dtype: Dtype = "uint16" if max(tokenizer.get_vocab().values()) < 1 << 16 else "uint32"
    return {"text": _text, "completion": _completion, "chat": _chat}[form](tokenizer, folder), dtype


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
    end = end_of_text(tokenizer, folder)

    def encode(texts: list[str]) -> list[Encoded | str]:
        return [document(_ids(encoding)) for encoding in tokenizer.encode_batch_fast(texts)]

    def document(ids: array[int]) -> Encoded:
        if not ids or ids[-1] != end:  # some tokenizers add it themselves
            ids.append(end)
        return Encoded(ids, b"\0" + b"\1" * (len(ids) - 1))

    return encode


def _completion(tokenizer: Tokenizer, folder: Path) -> Encode:
    end = end_of_text(tokenizer, folder)

    def encode(pairs: list[Completion]) -> list[Encoded | str]:
        # Each prompt with its completion as one text: what the model reads has no seam between tokens.
        texts = [text for prompt, completion in pairs for text in (prompt, prompt + completion)]
        ids = [_ids(encoding) for encoding in tokenizer.encode_batch_fast(texts)]
        return [document(before, whole) for before, whole in zip(ids[::2], ids[1::2], strict=True)]

    def document(before: array[int], whole: array[int]) -> Encoded:
        if not whole or whole[-1] != end:
            whole.append(end)
        first = max(1, _common(before, whole))
        return Encoded(whole, bytes(first) + b"\1" * (len(whole) - first))

    return encode


def end_of_text(tokenizer: Tokenizer, folder: Path) -> int:
    """The token that ends each document of a text. Raises ConfigError."""
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


def end_tokens(folder: Path, form: Form) -> list[int]:
    """What the model writes when it has nothing more to say: the end of a text; in a chat what the template puts behind
    the assistant's words, where that is a special token. Raises ConfigError."""
    tokenizer = load_tokenizer(folder)
    if form != "chat":
        return [end_of_text(tokenizer, folder)]
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

    drawing = Lock()

    def encode(chats: list[Chat]) -> list[Encoded | str]:
        # A chat without marks stands here once for each of its turns: so many at a time as fit a bounded memory.
        out: list[Encoded | str] = []
        few: list[_Drawn | str] = []
        size = 0
        for chat in chats:
            with drawing:  # a compiled template keeps its marks in one place: two threads would mix theirs
                few.append(_drawn(template, chat))
            size += 0 if isinstance(few[-1], str) else few[-1].size
            if size >= _PIECE:
                out += masked(few)
                few, size = [], 0
        return out + masked(few)

    def masked(drawn: list[_Drawn | str]) -> list[Encoded | str]:
        texts = [text for one in drawn if isinstance(one, _Drawn) for text in one.texts]
        # The template wrote the special tokens.
        encodings = iter(tokenizer.encode_batch(texts, add_special_tokens=False))
        return [one if isinstance(one, str) else _masked(one, list(islice(encodings, len(one.texts)))) for one in drawn]

    return encode


_PIECE = 1 << 22  # characters


class _Drawn(NamedTuple):
    """A chat as its template writes it."""

    texts: list[str]
    """The whole; without marks, besides, of each turn of the assistant what stands before it, and all up to its end."""
    marks: list[tuple[int, int]] | None
    """Characters that the template marks as the assistant's ({% generation %})."""

    @property
    def size(self) -> int:
        return sum(map(len, self.texts))


def _drawn(template: Any, chat: Chat) -> _Drawn | str:
    from transformers.utils.chat_template_utils import render_jinja_template

    def render(messages: list[Any], ask: bool = False, marks: bool = False) -> tuple[str, list[tuple[int, int]]]:
        drawn: Any = render_jinja_template(  # texts and marks, whatever its annotation says
            [messages],
            tools=chat.tools,
            chat_template=program,
            return_assistant_tokens_mask=marks,
            add_generation_prompt=ask,
            **template.special_tokens_map,
        )
        return drawn[0][0], drawn[1][0] if marks else []

    try:
        program = chat_template(template, chat)
        if _MARK.search(program):
            text, marks = render(chat.messages, marks=True)
            return _Drawn([text], marks)
        text = render(chat.messages)[0]
        turns = [i for i, message in enumerate(chat.messages) if message["role"] == "assistant"]
        ends = [render(chat.messages[: i + after], ask=not after)[0] for i in turns for after in (0, 1)]
    except Exception as error:  # a template is a program: jinja2 raises whatever it raises
        return f"the chat template refused it: {str(error)[:80]}"
    if any(not text.startswith(part) for part in ends):
        return "the chat template rewrites earlier turns"
    return _Drawn([text, *ends], None)


def chat_template(template: Any, chat: Chat) -> str:
    """The program that writes this chat. Where it asks for the date it gets one for good: data that are prepared anew
    on another day would be other tokens. The date is that of Llama 3.1's own template, for those who give it none."""
    program: str = template.get_chat_template(None, chat.tools)
    return _TODAY.sub(lambda asked: asked[1] + date(2024, 7, 26).strftime(asked[2]) + asked[1], program)


_TODAY = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")
_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")


def _masked(drawn: _Drawn, encodings: list[Encoding]) -> Encoded | str:
    """What the assistant has to write counts: by the marks, or what lies between the ends of two texts, whatever the
    template puts around it."""
    whole, *parts = encodings
    ids = _ids(whole)
    loss = np.zeros(len(ids), np.uint8)
    for begin, end in drawn.marks or ():
        first, last = whole.char_to_token(begin), whole.char_to_token(end - 1)
        if end > begin and first is not None:
            loss[first : len(ids) if last is None else last + 1] = 1
    for before, after in zip(parts[::2], parts[1::2], strict=True):
        loss[_common(_ids(before), ids) : _common(_ids(after), ids)] = 1
    loss[:1] = 0
    return Encoded(ids, loss.tobytes()) if loss.any() else "no completion tokens"


def _common(left: array[int], right: array[int]) -> int:
    """Length of the common start. In tokens: one that reaches over the edge counts as completion."""
    pairs = zip(left, right, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))
