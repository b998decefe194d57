"""Rows of files: each is a usable value, or a reason why it is not."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, NamedTuple

from settings import ConfigError
from trainer.data import kinds
from trainer.data.files import format_of
from trainer.data.readers import Record, Unusable, read_records, uncompressed
from trainer.sources import Source

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
        for path in source.files:
            with opened(path) as raw:
                self._open = raw
                for record in records(raw, path, source.row_columns, by_line=source.sample_by == "line"):
                    yield row_of(path, record, source.kind, names)
            self._before += os.path.getsize(path)


def opened(path: str) -> BinaryIO:
    """Raises ConfigError."""
    try:
        return open(path, "rb")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None


def records(raw: BinaryIO, path: str, columns: list[str], by_line: bool = False) -> Iterator[Record]:
    """What a file holds, by its suffix; of a columnar one these columns. Raises ConfigError."""
    kind, compression = format_of(path)
    return read_records(kind, uncompressed(raw, compression), path, columns, by_line)


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


def row_of(path: str, record: Record, kind: str, names: dict[str, str]) -> Row:
    """The record as a row of this kind; `names`: our name -> the file's."""
    try:
        if isinstance(record.row, Unusable):
            raise record.row
        value = kinds.reader(kind)(record.row, names)
    except Unusable as error:
        return Row(path, record.line, None, str(error), record.size)
    return Row(path, record.line, value, None, record.size)
