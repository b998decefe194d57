"""Files of data -> records: each with its place in the file and its size, a row's columns or why it has none."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple, cast

import msgspec

from settings import ConfigError

_BLOCK = 1 << 20  # bytes
_SLICE = 64  # rows of a columnar file that stand as Python objects at a time
_FIELD = 1 << 26  # characters: an unclosed quote swallows no more of a CSV file than this


class Unusable(Exception):
    """Carries the reason."""


class Record(NamedTuple):
    line: int
    """Where it begins, counted from 1; in columnar files the number of the row."""
    size: int
    """Bytes, about."""
    row: Any
    """A mapping of columns, if the file is well-formed; or an Unusable."""


def read_records(kind: str, stream: BinaryIO, path: str, columns: list[str], by_line: bool) -> Iterator[Record]:
    """The records of one file of a format. `columns`: all that is needed of a columnar file; the first one is what a
    plain text becomes, whole or each of its lines. Raises ConfigError when the file is damaged as a whole."""
    line = 0
    try:
        for record in _records(kind, stream, columns, by_line):
            yield record
            line = record.line
    except (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError, KeyError, NotImplementedError) as error:
        # pyarrow's errors are among them: a column that stands twice, a codec that is not built in.
        words = str(error).partition("\n")[0][:120]
        raise ConfigError(f"{path}: damaged after {line:,} (line, or row): no {kind}: {words}") from None


def _records(kind: str, stream: BinaryIO, columns: list[str], by_line: bool) -> Iterator[Record]:
    match kind:
        case "jsonl":
            return _json_lines(stream)
        case "json":
            return _json(stream)
        case "csv" | "tsv":
            return _csv(stream, "," if kind == "csv" else "\t")
        case "txt":
            return _text(stream, columns[0], by_line)
        case "parquet":
            return _parquet(stream, columns)
    return _arrow(stream, columns)


def uncompressed(raw: BinaryIO, compression: str) -> BinaryIO:
    match compression:
        case ".gz":
            stream: Any = gzip.GzipFile(fileobj=raw)
        case ".bz2":
            stream = bz2.BZ2File(raw)
        case ".xz":
            stream = lzma.LZMAFile(raw)  # noqa: SIM115
        case ".zst":
            import pyarrow

            stream = pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, mode="r"), "zstd")
        case _:
            return raw
    return cast(BinaryIO, io.BufferedReader(stream, _BLOCK))


# --- JSON -----------------------------------------------------------------------------------------------


def _json_lines(stream: BinaryIO) -> Iterator[Record]:
    """Blank lines are no rows."""
    for number, line in enumerate(stream, 1):
        if line.strip():
            yield Record(number, len(line), _decoded(line))


def _decoded(text: bytes) -> Any:
    try:
        row = msgspec.json.decode(text.decode())
    except UnicodeDecodeError:
        return Unusable("not valid UTF-8")
    except (msgspec.DecodeError, RecursionError):
        return Unusable("not valid JSON")
    return row if isinstance(row, dict) else Unusable("not an object")


_MARKS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|["\[\]{},]', re.DOTALL)
"""Whole strings, and what stands between values; a lone quote: a string whose end is not read yet."""


def _json(stream: BinaryIO) -> Iterator[Record]:
    """The elements of an array, one at a time, each decoded by itself: a broken one is one row that cannot be used."""
    if not cast(io.BufferedReader, stream).peek(1 << 12).lstrip().startswith(b"["):
        yield from _json_lines(stream)  # many call it .json
        return
    buffer, done, begin, depth, line, count = b"", 0, 0, 0, 1, 0
    while block := stream.read(_BLOCK):
        buffer += block
        for mark in _MARKS.finditer(buffer, done):
            done = mark.end()
            match mark[0]:
                case b'"':
                    done = mark.start()
                    break
                case b"[" | b"{":
                    depth += 1
                    begin = done if depth == 1 else begin
                case b"]" | b"}":
                    depth -= 1
            if depth == 0 or depth == 1 and mark[0] == b",":
                element = buffer[begin : mark.start()]
                if element.strip() or depth or count:
                    yield _element(element, line)
                    count += 1
                line += buffer.count(b"\n", begin, done)
                begin = done
                if depth == 0:
                    yield from _after(buffer[done:] + stream.read(_BLOCK), line)
                    return
        else:
            done = len(buffer)
        buffer, done, begin = buffer[begin:], done - begin, 0
    yield Record(line + _blank_lines(buffer), len(buffer), Unusable("the array does not end"))


def _element(text: bytes, line: int) -> Record:
    return Record(line + _blank_lines(text), len(text), _decoded(text))


def _after(text: bytes, line: int) -> Iterator[Record]:
    if text.strip():
        yield Record(line + _blank_lines(text), len(text), Unusable("more stands behind the array"))


def _blank_lines(text: bytes) -> int:
    """Line ends before the first word."""
    return text[: len(text) - len(text.lstrip())].count(b"\n")


# --- tables and texts -----------------------------------------------------------------------------------


def _csv(stream: BinaryIO, delimiter: str) -> Iterator[Record]:
    """The first row names the columns. A byte that is no UTF-8 becomes a surrogate, which its row is refused for."""
    csv.field_size_limit(_FIELD)
    with io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
        reader = csv.reader(text, delimiter=delimiter, strict=True)
        header: list[str] = []
        while True:
            line = reader.line_num + 1
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error:
                yield Record(line, _BLOCK, Unusable("not valid CSV"))
                continue
            if not header:
                header = fields
            elif fields:  # a blank line is no row
                row = dict(zip(header, fields, strict=False))
                yield Record(line, sum(map(len, fields)), row if len(fields) == len(header) else Unusable(_RAGGED))


_RAGGED = "more or fewer fields than the header"


def _text(stream: BinaryIO, column: str, by_line: bool) -> Iterator[Record]:
    lines = enumerate(stream, 1) if by_line else [(1, stream.read())]
    for number, text in lines:
        if text.strip() or not by_line:
            words = text.decode("utf-8", "surrogateescape")
            yield Record(number, len(text), {column: words.rstrip("\r\n") if by_line else words})


# --- columns --------------------------------------------------------------------------------------------


def _parquet(stream: BinaryIO, columns: list[str]) -> Iterator[Record]:
    from pyarrow.parquet import ParquetFile

    file = ParquetFile(stream, buffer_size=_BLOCK)
    wanted = [name for name in columns if name in file.schema_arrow.names]
    if wanted:
        yield from _rows(file.iter_batches(_SLICE, columns=wanted))
    else:
        yield from (Record(number, 0, {}) for number in range(1, file.metadata.num_rows + 1))


def _arrow(stream: BinaryIO, columns: list[str]) -> Iterator[Record]:
    """A file, or a stream as `datasets` writes it."""
    from pyarrow import ipc

    if cast(io.BufferedReader, stream).peek(6).startswith(b"ARROW1"):
        file = ipc.open_file(stream)
        batches = (file.get_batch(i) for i in range(file.num_record_batches))
    else:
        batches = iter(ipc.open_stream(stream))
    wanted = (batch.select([name for name in columns if name in batch.schema.names]) for batch in batches)
    yield from _rows(b.slice(i, _SLICE) for b in wanted for i in range(0, b.num_rows, _SLICE))


def _rows(batches: Iterator[Any]) -> Iterator[Record]:
    number = 0
    for batch in batches:
        size = batch.nbytes // max(1, batch.num_rows)
        for row in _python(batch):
            number += 1
            yield Record(number, size, row)


def _python(batch: Any) -> list[Any]:
    """The rows of a batch; what is no text in a text's column costs its own row alone."""
    try:
        return cast(list[Any], batch.to_pylist())
    except UnicodeDecodeError:
        if batch.num_rows == 1:
            return [Unusable("not valid UTF-8")]
        return [row for i in range(batch.num_rows) for row in _python(batch.slice(i, 1))]
