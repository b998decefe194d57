"""Rows of files: each is a usable value, or a reason why it is not."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, NamedTuple

import msgspec

from settings import ConfigError
from trainer.data.files import format_of
from trainer.data.readers import Record, Unusable, read_records, uncompressed
from trainer.data.values import Chat, Completion
from trainer.sources import ROLES, Source

_BATCH_ROWS = 1024
_BATCH_BYTES = 1 << 22


class Row(NamedTuple):
    file: str
    line: int
    """Counted from 1; in columnar files the number of the row."""
    value: Any
    """A text; a Completion; a Chat; None when the row cannot be used."""
    reason: str | None
    """Why it cannot be used."""
    size: int
    """Bytes, about."""


class Rows:
    """Every row of a source's files, in order. Raises ConfigError when a file cannot be read."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.size = sum(os.path.getsize(path) for path in source.files if os.path.exists(path))
        """Bytes of all files, compressed as they lie there."""
        self._before = 0
        self._open: BinaryIO | None = None

    @property
    def position(self) -> int:
        """Bytes that are read of them."""
        return self._before + (self._open.tell() if self._open and not self._open.closed else 0)

    def __iter__(self) -> Iterator[Row]:
        source, names = self._source, self._source.columns
        wanted = [names[key] for key in names if key in _COLUMNS[source.kind]]
        for path in source.files:
            kind, compression = format_of(path)
            with _opened(path) as raw:
                self._open = raw
                stream = uncompressed(raw, compression)
                for record in read_records(kind, stream, path, wanted, by_line=source.sample_by == "line"):
                    yield _row(path, record, source.kind, names)
            self._before += os.path.getsize(path)


def _opened(path: str) -> BinaryIO:
    try:
        return open(path, "rb")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None


_COLUMNS = {"text": ("text",), "completion": ("prompt", "completion"), "chat": ("messages", "tools")}
"""By kind: what is a column of a row; the others are names inside of one."""


def batched(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Rows in batches that are large enough for a parallel tokenizer and bounded in memory."""
    batch: list[Row] = []
    size = 0
    for row in rows:
        batch.append(row)
        size += row.size
        if len(batch) == _BATCH_ROWS or size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _row(path: str, record: Record, kind: str, names: dict[str, str]) -> Row:
    try:
        if isinstance(record.row, Unusable):
            raise record.row
        value = _VALUES[kind](record.row, names)
    except Unusable as error:
        return Row(path, record.line, None, str(error), record.size)
    return Row(path, record.line, value, None, record.size)


def _text(row: dict[str, Any], names: dict[str, str]) -> str:
    text = _string(row, names["text"])
    if not text.strip():
        raise Unusable("empty")
    return text


def _completion(row: dict[str, Any], names: dict[str, str]) -> Completion:
    pair = Completion(_string(row, names["prompt"]), _string(row, names["completion"]))
    if not pair.completion.strip():
        raise Unusable("no completion tokens")
    return pair


def _string(row: dict[str, Any], column: str) -> str:
    value = _column(row, column)
    if not isinstance(value, str):
        raise Unusable(f"'{column}' is not a text")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise Unusable("not valid UTF-8") from None
    return value


def _column(row: dict[str, Any], column: str) -> Any:
    if column not in row:
        raise Unusable(f"no column '{column}'")
    return row[column]


def _chat(row: dict[str, Any], names: dict[str, str]) -> Chat:
    messages = _column(row, names["messages"])
    if not isinstance(messages, list):
        raise Unusable(f"'{names['messages']}' is not a list of messages")
    if not messages:
        raise Unusable("empty")
    messages = [_message(message, names) for message in messages]
    if not any(m["role"] == "assistant" and (m["content"].strip() or m.get("tool_calls")) for m in messages):
        raise Unusable("no completion tokens")
    return Chat(messages, _tools(row.get(names["tools"])))


def _message(message: Any, names: dict[str, str]) -> dict[str, Any]:
    """A message under the names that templates know."""
    role, content = names["role"], names["content"]
    shape = f"a message is not {{{role}, {content}}} with a text as {content}"
    if not isinstance(message, dict):
        raise Unusable(shape)
    # A columnar file gives every message the fields of all of them; a call of tools needs no words.
    message = {key: value for key, value in message.items() if value is not None}
    said = message.pop(content, "" if message.get("tool_calls") else None)
    if not isinstance(said, str):
        raise Unusable(shape)
    by_name = {names[ours]: ours for ours in ROLES}
    spoken_by = message.pop(role, None)
    if not isinstance(spoken_by, str) or spoken_by not in by_name:
        raise Unusable("unknown role")
    return {"role": by_name[spoken_by], "content": said, **message}


def _tools(tools: Any) -> list[Any] | None:
    """A list of JSON schemas, or that as a text: a column of a table has one type."""
    if isinstance(tools, str) and tools.strip():
        try:
            tools = msgspec.json.decode(tools)
        except msgspec.DecodeError:
            raise Unusable("the tools are not valid JSON") from None
    if tools and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise Unusable("the tools are not a list of JSON schemas")
    return tools or None


_VALUES = {"text": _text, "completion": _completion, "chat": _chat}
