"""Rows of JSONL files: each is a usable value, or a reason why it is not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple

import msgspec

COLUMNS = {"text": "text", "chat": "messages"}
"""The row's field where data.column names none."""

_ROLES = ("system", "developer", "user", "assistant", "tool")
_BATCH_ROWS = 1024
_BATCH_BYTES = 1 << 22


class Row(NamedTuple):
    file: str
    line: int
    """Counted from 1."""
    value: Any
    """A text, or a list of messages; None when the row cannot be used."""
    reason: str | None
    """Why it cannot be used."""
    size: int
    """Bytes in the file."""


class _Unusable(Exception):
    """Carries the reason."""


def read_rows(paths: Iterable[str], kind: Literal["text", "chat"], column: str) -> Iterator[Row]:
    """Every row of the files, in order. Blank lines are no rows."""
    for path in paths:
        with open(path, "rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _row(path, number, line, kind, column)


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


def _row(path: str, number: int, line: bytes, kind: str, column: str) -> Row:
    try:
        value = _column(line, column)
        (_check_text if kind == "text" else _check_messages)(value, column)
    except _Unusable as error:
        return Row(path, number, None, str(error), len(line))
    return Row(path, number, value, None, len(line))


def _column(line: bytes, column: str) -> Any:
    try:
        row = msgspec.json.decode(line.decode())
    except UnicodeDecodeError:
        raise _Unusable("not valid UTF-8") from None
    except msgspec.DecodeError:
        raise _Unusable("not valid JSON") from None
    if not isinstance(row, dict):
        raise _Unusable("not an object")
    if column not in row:
        raise _Unusable(f"no column '{column}'")
    return row[column]


def _check_text(value: Any, column: str) -> None:
    if not isinstance(value, str):
        raise _Unusable(f"'{column}' is not a text")
    if not value.strip():
        raise _Unusable("empty")


def _check_messages(value: Any, column: str) -> None:
    if not isinstance(value, list):
        raise _Unusable(f"'{column}' is not a list of messages")
    if not value:
        raise _Unusable("empty")
    for message in value:
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise _Unusable("a message is not {role, content} with a text as content")
        if message.get("role") not in _ROLES:
            raise _Unusable("unknown role")
    if not any(message["role"] == "assistant" and message["content"].strip() for message in value):
        raise _Unusable("no completion tokens")
