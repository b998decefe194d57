"""JSONL files -> prepared data, once: tokenized into a folder named by the hash of all that went in."""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np
import xxhash

from durable import fsync_path
from settings import ConfigError
from trainer.config import cache_folder
from trainer.data.encode import Encode, encoder
from trainer.data.prepared import Manifest, Prepared
from trainer.data.rows import COLUMNS, Row, batched, read_rows
from trainer.schema import Data, Source

__all__ = ["Prepared", "cache_folder", "prepare"]

FORMAT = 1
"""Rises when the same sources give other files."""

_FILES = ("tokens.bin", "documents.bin", "loss.bin", "starts.bin", "rejects.jsonl")
_DONE = "done.json"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def prepare(
    data: Data,
    tokenizer_folder: str,
    cache: Path,
    key: str,
    say: Callable[[str], Any] = print,
    between: Callable[[], Any] = lambda: None,
) -> Prepared:
    """One of data.sources, as `prepare_source` does it."""
    source = data.sources.get(key)
    if source is None or not source.files:
        raise ConfigError(f"data.{key}: no file is given")
    return prepare_source(f"data.{key}", source, data, tokenizer_folder, cache, say, between)


def prepare_source(
    name: str,
    source: Source,
    data: Data,
    tokenizer_folder: str,
    cache: Path,
    say: Callable[[str], Any] = print,
    between: Callable[[], Any] = lambda: None,
) -> Prepared:
    """Prepared data: found in `cache`, or made there. Many processes may call it at once. `name`: as the user calls it.

    `between` is called every few seconds of work; what it raises breaks off, and the next call goes on there.
    Raises ConfigError when a file is missing, too many rows cannot be used, or no sequence comes out.
    """
    fingerprint = _fingerprint(source, data.seq_len, tokenizer_folder, between)
    folder = cache / fingerprint
    if not folder.is_dir():
        _build(source, data.seq_len, tokenizer_folder, folder, say, between)
    prepared = Prepared.open(folder)
    # After the rename: the rejects stay for the user to read, and another max_rejects tokenizes nothing.
    _check(prepared, data.max_rejects, name)
    return prepared


# --- fingerprint ----------------------------------------------------------------------------------------


def _fingerprint(source: Source, seq_len: int, tokenizer_folder: str, between: Callable[[], Any]) -> str:
    files = (Path(tokenizer_folder, name) for name in _TOKENIZER_FILES)
    parts = {
        "format": FORMAT,
        "sources": [_content_hash(Path(path), between) for path in source.files],
        "tokenizer": {file.name: _content_hash(file, between) for file in files if file.is_file()},
        "settings": [source.kind, _column(source), seq_len],
    }
    return xxhash.xxh3_128_hexdigest(msgspec.json.encode(parts))


def _column(source: Source) -> str:
    return source.column or COLUMNS[source.kind]


def _content_hash(path: Path, between: Callable[[], Any]) -> str:
    digest = xxhash.xxh3_128()
    try:
        with path.open("rb") as handle:
            while block := handle.read(1 << 22):
                digest.update(block)
                between()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    return digest.hexdigest()


# --- building -------------------------------------------------------------------------------------------


class _Done(msgspec.Struct):
    """What is written so far; stands in a file of its own when the writing was broken off."""

    rows: int = 0
    documents: int = 0
    tokens: int = 0
    rejects: dict[str, int] = {}


def _build(
    source: Source,
    seq_len: int,
    tokenizer_folder: str,
    folder: Path,
    say: Callable[[str], Any],
    between: Callable[[], Any],
) -> None:
    """Writes beside and renames once: a folder of prepared data is whole or is not there."""
    began = time.monotonic()
    temporary = folder.with_name(f".tmp-{uuid.uuid4().hex}")
    try:
        done = _begin(folder, temporary)
        if done.rows:
            say(f"the preparation goes on after row {done.rows:,}")

        def kept_between() -> None:
            try:
                between()
            except BaseException:
                (temporary / _DONE).write_bytes(msgspec.json.encode(done))
                raise

        dtype = _write(source, tokenizer_folder, temporary, done, kept_between)
        # Files that grow while they are read would stand under a wrong name for every later run.
        if _fingerprint(source, seq_len, tokenizer_folder, kept_between) != folder.name:
            raise ConfigError(f"{', '.join(source.files)}: changed while being read: start again when complete")
        manifest = _write_manifest(seq_len, temporary, folder.name, dtype, done)
        _publish(temporary, folder)
    finally:
        _put_aside(temporary, folder)
    say(
        f"prepared {manifest.documents:,} documents, {manifest.tokens:,} tokens, "
        f"{manifest.sequences:,} sequences of {manifest.seq_len}: {time.monotonic() - began:.1f} s, {folder}"
    )


def _begin(folder: Path, temporary: Path) -> _Done:
    """What an earlier call left when it was broken off, which one process alone takes over; or a new folder."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        _part(folder).rename(temporary)
    except FileNotFoundError:
        temporary.mkdir(mode=0o755)
        return _Done()
    done = msgspec.json.decode((temporary / _DONE).read_bytes(), type=_Done)
    (temporary / _DONE).unlink()
    return done


def _put_aside(temporary: Path, folder: Path) -> None:
    """What was broken off is kept, unless another process has kept its own; everything else unfinished goes."""
    if (temporary / _DONE).is_file():
        with suppress(OSError):
            temporary.rename(_part(folder))
    shutil.rmtree(temporary, ignore_errors=True)


def _part(folder: Path) -> Path:
    return folder.with_name(f".part-{folder.name}")


def _write(
    source: Source,
    tokenizer_folder: str,
    folder: Path,
    done: _Done,
    between: Callable[[], Any],
) -> str:
    """Every row that is not done yet. Returns the dtype of the tokens."""
    encode, dtype = encoder(Path(tokenizer_folder), source.kind)
    seen = 0
    with ExitStack() as stack:
        files = {name: stack.enter_context(_open(folder / name)) for name in _FILES}
        for batch in batched(read_rows(source.files, source.kind, _column(source))):
            between()
            _write_rows(batch[done.rows - seen :], encode, dtype, files, done)  # empty for what was done before
            seen += len(batch)
    return dtype


def _write_rows(batch: list[Row], encode: Encode, dtype: str, files: dict[str, BinaryIO], done: _Done) -> None:
    encoded = iter(encode([row.value for row in batch if row.reason is None]))
    for row in batch:
        result = row.reason or next(encoded)
        if isinstance(result, str):
            done.rejects[result] = done.rejects.get(result, 0) + 1
            line = {"file": row.file, "line": row.line, "reason": result}
            files["rejects.jsonl"].write(msgspec.json.encode(line) + b"\n")
            continue
        files["tokens.bin"].write(np.array(result.ids, dtype).tobytes())
        files["documents.bin"].write(np.full(len(result.ids), done.documents, np.int32).tobytes())
        files["loss.bin"].write(result.loss.tobytes())
        files["starts.bin"].write(np.int64(done.tokens).tobytes())
        done.documents += 1
        done.tokens += len(result.ids)
    done.rows += len(batch)


def _write_manifest(seq_len: int, folder: Path, fingerprint: str, dtype: str, done: _Done) -> Manifest:
    sequences = max(0, done.tokens - 1) // seq_len
    manifest = Manifest(
        fingerprint=fingerprint,
        format=FORMAT,
        seq_len=seq_len,
        dtype=dtype,
        rows=done.rows,
        documents=done.documents,
        tokens=done.tokens,
        sequences=sequences,
        left_out=done.tokens - sequences * seq_len - 1 if sequences else done.tokens,
        rejects=dict(sorted(done.rejects.items(), key=lambda item: -item[1])),
    )
    with _open(folder / "manifest.json") as handle:
        handle.write(msgspec.json.format(msgspec.json.encode(manifest)) + b"\n")
    return manifest


@contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    """A file to append to, on the disk when the block ends; never writable by others, whatever the umask."""
    with open(path, "ab", opener=lambda name, flags: os.open(name, flags, 0o644)) as handle:
        yield handle
        handle.flush()
        os.fsync(handle.fileno())


def _publish(temporary: Path, folder: Path) -> None:
    fsync_path(temporary)
    try:
        temporary.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
        return  # another process was first: same name, same content
    fsync_path(folder.parent)


# --- rejects --------------------------------------------------------------------------------------------


def _check(prepared: Prepared, max_rejects: float, name: str) -> None:
    """Raises ConfigError when too many rows were rejected, or no sequence is there."""
    manifest, file = prepared.manifest, prepared.folder / "rejects.jsonl"
    count = sum(manifest.rejects.values())
    if count > max_rejects * manifest.rows:
        with file.open("rb") as lines:
            first = msgspec.json.decode(lines.readline())
        reasons = ", ".join(f"{reason}: {n:,}" for reason, n in manifest.rejects.items())
        raise ConfigError(
            f"{name}: {count:,} of {manifest.rows:,} rows cannot be used ({reasons}), more than "
            f"data.max_rejects={max_rejects:g} allows; the first is {first['file']}:{first['line']}: "
            f"mend the rows that {file} lists, or raise data.max_rejects"
        )
    if not prepared.sequences:
        raise ConfigError(
            f"{name}: {manifest.tokens:,} tokens in {manifest.rows:,} rows fill no sequence of "
            f"data.seq_len={prepared.seq_len} and its last target: give more data or a smaller data.seq_len"
        )
