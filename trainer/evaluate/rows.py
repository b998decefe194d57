"""What a model is asked: rows with a prompt and a reference, and the prompt's tokens as the training formatted them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from settings import ConfigError
from trainer.data.encode import chat_template, end_of_text, load_tokenizer
from trainer.data.rows import opened, records, row_of
from trainer.data.values import Chat, Completion, Form
from trainer.sources import Source

_ID, _GROUP = "id", "difficulty"
"""Columns beside those of the kind, where a file has them."""


class Row(NamedTuple):
    id: str
    """The file's own, else the number of its line."""
    prompt: Completion | Chat
    """Of a chat, all but the last message."""
    reference: str
    group: str | None

    @property
    def text(self) -> str:
        """The prompt as a person reads it."""
        if isinstance(self.prompt, Completion):
            return self.prompt.prompt
        return "\n\n".join(message["content"] for message in self.prompt.messages)


def read(source: Source, limit: int | None = None) -> list[Row]:
    """The rows of completions or chats, in order; the first `limit`. Raises ConfigError, also for one that has no
    reference: what is left out silently would change the score."""
    rows: dict[str, Row] = {}
    for one in islice(_rows(source), limit):
        if isinstance(one, str):
            raise ConfigError(f"{one}: a row that cannot be evaluated")
        if one.id in rows:
            raise ConfigError(f"{', '.join(source.files)}: the id {one.id} stands there twice: each row needs its own")
        rows[one.id] = one
    if not rows:
        raise ConfigError(f"{', '.join(source.files)}: there is no row")
    return list(rows.values())


def thinned(sources: Iterable[Source], most: int) -> list[Row]:
    """Rows that can be used from all over these sources, between `most` and twice as many where there are so many."""
    kept: list[Row] = []
    stride = 1
    usable = (row for source in sources for row in _rows(source) if isinstance(row, Row))
    for number, row in enumerate(usable):
        if number % stride == 0:
            kept.append(row)
        if len(kept) > 2 * most:
            kept, stride = kept[::2], 2 * stride
    return kept


def fullest(rows: Iterable[Row]) -> list[tuple[str, str]]:
    """Prompts and references; of a prompt that comes again, as with a part of its answer alone, the longest one."""
    found: dict[str, str] = {}
    for row in rows:
        found[row.text] = max(found.get(row.text, ""), row.reference, key=len)
    return list(found.items())


def _rows(source: Source) -> Iterator[Row | str]:
    """Each row, or where it stands and why it is none."""
    names = source.columns
    for number, path in enumerate(source.files):
        with opened(path) as raw:
            for record in records(raw, path, [*source.row_columns, _ID, _GROUP]):
                found = row_of(path, record, source.kind, names)
                name = f"{number}:{found.line}" if len(source.files) > 1 else str(found.line)
                row = found.reason or _row(found.value, record.row, name)
                yield f"{path} line {found.line}: {row}" if isinstance(row, str) else row


def _row(value: Completion | Chat, fields: dict[str, Any], number: str) -> Row | str:
    id, group = (None if value is None else str(value) for value in (fields.get(_ID), fields.get(_GROUP)))
    id = number if id is None else id
    if isinstance(value, Completion):
        return Row(id, value, value.completion, group)
    *asked, last = value.messages
    if last["role"] != "assistant" or not last["content"].strip() or not asked:
        return "the chat does not end with words of the assistant"
    return Row(id, Chat(asked, value.tools), last["content"], group)


def fingerprint(rows: Sequence[Row]) -> str:
    """sha256 of all that the model is asked and judged by."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps([row.id, row.prompt, row.reference, row.group], sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


# --- tokens ---------------------------------------------------------------------------------------------

Encode = Callable[[Sequence[Row]], list[list[int]]]


def encoder(folder: Path, form: Form) -> Encode:
    """Prompts as tokens: what stood before the first token that the training's loss counted. Raises ConfigError."""
    tokenizer = load_tokenizer(folder)
    if form == "chat":
        from transformers import AutoTokenizer  # more than a second

        template = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        return lambda rows: [_asked(template, tokenizer, row) for row in rows]
    end = end_of_text(tokenizer, folder)

    def encode(rows: Sequence[Row]) -> list[list[int]]:
        found: list[list[int]] = [one.ids for one in tokenizer.encode_batch([row.text for row in rows])]
        # Some tokenizers end each text by themselves: behind that no model goes on.
        return [ids[:-1] if ids and ids[-1] == end else ids for ids in found]

    return encode


def _asked(template: Any, tokenizer: Any, row: Row) -> list[int]:
    assert isinstance(row.prompt, Chat)
    try:
        program = chat_template(template, row.prompt)
        asked = {"tools": row.prompt.tools, "add_generation_prompt": True, "chat_template": program}
        text = template.apply_chat_template(row.prompt.messages, tokenize=False, **asked)
    except Exception as error:  # a template is a program: jinja2 raises whatever it raises
        raise ConfigError(f"row {row.id}: the chat template refused it: {str(error)[:80]}") from None
    return list(tokenizer.encode(text, add_special_tokens=False).ids)  # the template wrote the special tokens
