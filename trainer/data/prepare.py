"""Files -> prepared data, once: tokenized into a folder named by the hash of all that went in."""

from __future__ import annotations

import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np
import xxhash

from durable import fsync_path, is_own, write_atomic
from settings import ConfigError
from trainer.config import OWN_CACHE
from trainer.data.encode import Encode, Encoded, encoder
from trainer.data.files import format_of
from trainer.data.hashes import content_hash
from trainer.data.packing import packed
from trainer.data.prepared import Manifest, Prepared
from trainer.data.rows import Row, Rows, batched
from trainer.data.values import Dtype
from trainer.sources import Data, Source

FORMAT = 3
"""Rises when the same sources give other files."""

_FILES = ("tokens.bin", "loss.bin", "starts.bin", "rejects.jsonl")
_DONE = "done.json"
COMMIT_SECONDS = 30.0
"""Of work that a kill may cost."""
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def prepare(
    data: Data,
    tokenizer_folder: str,
    cache: Path,
    key: str,
    say: Callable[[str], Any] = print,
    between: Callable[[], Any] = lambda: None,
    watch: Callable[[int, int], Any] = lambda done, size: None,
) -> Prepared:
    """One of data.sources, as `prepare_source` does it."""
    source = source_of(data, key)
    return prepare_source(f"data.{key}", source, data, tokenizer_folder, cache, say, between, watch)


def prepare_source(
    name: str,
    source: Source,
    data: Data,
    tokenizer_folder: str,
    cache: Path,
    say: Callable[[str], Any] = print,
    between: Callable[[], Any] = lambda: None,
    watch: Callable[[int, int], Any] = lambda done, size: None,
) -> Prepared:
    """Prepared data: found in `cache`, or made there. Many processes may call it at once. `name`: as the user calls it.

    `between` is called every few seconds of work; what it raises breaks off, and the next call goes on there. `watch`
    is told how many bytes of how many are read. Raises ConfigError when a file is missing, too many rows cannot be
    used, or no sequence comes out.
    """
    _open_cache(cache)
    data = data.cut_for(source)
    folder = cache / fingerprint(source, data, tokenizer_folder, cache, between)
    while not folder.is_dir():
        _build(source, data, tokenizer_folder, folder, say, between, watch)
    prepared = Prepared.open(folder)
    # After the rename: the rejects stay for the user to read, and another max_rejects tokenizes nothing.
    _check(prepared, data.max_rejects, name)
    return prepared


def _open_cache(cache: Path) -> None:
    """The default one, beside the runs, is as private as they are: it spells out their data. Raises ConfigError."""
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        cache.mkdir(mode=0o700 if cache.name == OWN_CACHE else 0o775, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{cache}: {error.strerror}: take another folder for prepared data: data.cache=DIR") from None
    theirs = cache.name == OWN_CACHE and not is_own(cache)  # what they put there would be trained on
    if theirs or not os.access(cache, os.R_OK | os.X_OK):
        raise ConfigError(f"{cache} is another user's: take another --runs-dir, or data.cache=DIR")


# --- fingerprint ----------------------------------------------------------------------------------------


def fingerprint(
    source: Source, data: Data, tokenizer_folder: str, cache: Path, between: Callable[[], Any] = lambda: None
) -> str:
    """The name of a source's prepared data in `cache`: the hash of all that goes in. Raises ConfigError."""
    files = (Path(tokenizer_folder, name) for name in _TOKENIZER_FILES)
    records = cache / ".hashes"
    parts = {
        "format": FORMAT,
        "sources": [[format_of(path), content_hash(Path(path), records, between)] for path in source.files],
        "tokenizer": {file.name: content_hash(file, records, between) for file in files if file.is_file()},
        "settings": [source.kind, source.columns, source.sample_by, data.seq_len, data.too_long, data.document_limit],
    }
    return xxhash.xxh3_128_hexdigest(msgspec.json.encode(parts))


def source_of(data: Data, key: str) -> Source:
    """Raises ConfigError."""
    source = data.sources.get(key)
    if source is None or not source.files:
        raise ConfigError(f"data.{key}: no file is given")
    return source


# --- building -------------------------------------------------------------------------------------------


class _Done(msgspec.Struct):
    """What is written so far."""

    rows: int = 0
    documents: int = 0
    tokens: int = 0
    too_long: int = 0
    rejects: dict[str, int] = {}
    rejects_size: int = 0
    """Bytes of rejects.jsonl."""


def _build(
    source: Source,
    data: Data,
    tokenizer_folder: str,
    folder: Path,
    say: Callable[[str], Any],
    between: Callable[[], Any],
    watch: Callable[[int, int], Any],
) -> None:
    """Writes beside and renames once: a folder of prepared data is whole or is not there.

    All who prepare the same data write into one folder, at once or one after the other's death: each byte has one
    place and one value, whoever writes it. So nobody has to know who is still alive.
    """
    began = time.monotonic()
    part = folder.with_name(f".part-{folder.name}")
    part.mkdir(mode=0o755, parents=True, exist_ok=True)
    try:
        if not is_own(part):  # links in it would lead our writing elsewhere
            raise ConfigError(f"{part} is another user's, who prepares the same: wait, or take data.cache=DIR")
        done = _done(part)
        if done.rows:
            say(f"the preparation goes on after row {done.rows:,}")
        dtype = _write(source, data, tokenizer_folder, part, done, between, watch)
        # Files that grow while they are read would stand under a wrong name for every later run.
        if fingerprint(source, data, tokenizer_folder, folder.parent, between) != folder.name:
            raise ConfigError(f"{', '.join(source.files)}: changed while being read: start again when complete")
        manifest = _write_manifest(data.seq_len, part, folder.name, dtype, done)
        _publish(part, folder)
    except ConfigError:
        shutil.rmtree(part, ignore_errors=True)
        raise
    except FileNotFoundError:
        if part.is_dir():
            raise
        return  # another process was first, or has found a mistake that the next round finds too
    say(
        f"prepared {manifest.documents:,} documents, {manifest.tokens:,} tokens, "
        f"{manifest.sequences:,} sequences of {manifest.seq_len}: {time.monotonic() - began:.1f} s, {folder}"
    )


def _done(part: Path) -> _Done:
    try:
        return msgspec.json.decode((part / _DONE).read_bytes(), type=_Done)
    except FileNotFoundError:
        return _Done()


def _write(
    source: Source,
    data: Data,
    tokenizer_folder: str,
    part: Path,
    done: _Done,
    between: Callable[[], Any],
    watch: Callable[[int, int], Any],
) -> Dtype:
    """Every row that is not done yet. Returns the dtype of the tokens."""
    encode, dtype = encoder(Path(tokenizer_folder), source.form)
    sizes = (np.dtype(dtype).itemsize * done.tokens, done.tokens, 8 * done.documents)
    rows = Rows(source)
    with ExitStack() as stack:
        begins = zip(_FILES, (*sizes, done.rejects_size), strict=True)
        files = {name: stack.enter_context(_open(part / name, begin)) for name, begin in begins}
        due = time.monotonic() + COMMIT_SECONDS
        for batch, results in _encoded(rows, encode, done.rows):
            try:
                between()
            except BaseException:
                _commit(part, files, done)
                raise
            _write_rows(batch, results, data, dtype, files, done)
            watch(rows.position, rows.size)
            if time.monotonic() >= due:
                _commit(part, files, done)
                due = time.monotonic() + COMMIT_SECONDS
        _commit(part, files, done)
    return dtype


def _encoded(rows: Rows, encode: Encode, done: int) -> Iterator[tuple[list[Row], Iterator[Encoded | str]]]:
    """Batches of rows from the first one on that is not done, with what the usable ones become.

    Two are on their way: while what one has become is turned into Python's objects, the next one is tokenized, by
    threads of the library's own.
    """
    seen = 0
    waiting: deque[tuple[list[Row], Future[list[Encoded | str]]]] = deque()
    with ThreadPoolExecutor(2) as pool:
        for batch in batched(rows):
            left = batch[max(0, done - seen) :]  # empty for what was done before
            seen += len(batch)
            waiting.append((left, pool.submit(encode, [row.value for row in left if row.reason is None])))
            if len(waiting) > 2:
                left, future = waiting.popleft()
                yield left, iter(future.result())
        for left, future in waiting:
            yield left, iter(future.result())


def _write_rows(
    batch: list[Row],
    results: Iterator[Encoded | str],
    data: Data,
    dtype: Dtype,
    files: dict[str, BinaryIO],
    done: _Done,
) -> None:
    documents = []
    for row in batch:
        result = row.reason or _fitted(next(results), data, done)
        if isinstance(result, Encoded):
            documents.append(result)
            continue
        done.rejects[result] = done.rejects.get(result, 0) + 1
        line = {"file": row.file, "line": row.line, "reason": result}
        done.rejects_size += files["rejects.jsonl"].write(msgspec.json.encode(line) + b"\n")
    done.rows += len(batch)
    if documents:
        lengths = np.array([len(document.ids) for document in documents], np.int64)
        ends = done.tokens + np.cumsum(lengths)
        ids = np.frombuffer(b"".join([document.ids for document in documents]), np.uint32)
        files["tokens.bin"].write(ids.astype(dtype, copy=False).data)
        files["loss.bin"].write(b"".join([document.loss for document in documents]))
        files["starts.bin"].write((ends - lengths).data)
        done.documents += len(documents)
        done.tokens = int(ends[-1])


def _fitted(result: Encoded | str, data: Data, done: _Done) -> Encoded | str:
    """A document as data.too_long has it."""
    if isinstance(result, str) or len(result.ids) <= data.document_limit:
        return result
    if data.too_long == "reject":
        return f"too long: more than {data.document_limit:,} tokens"
    if data.too_long == "truncate":  # without an end: the text did not end there
        result = Encoded(result.ids[: data.document_limit], result.loss[: data.document_limit])
        if 1 not in result.loss:
            return "no completion tokens"
    done.too_long += 1
    return result


def _commit(part: Path, files: dict[str, BinaryIO], done: _Done) -> None:
    """From here on the next call goes on, also after a crash of this host."""
    for file in files.values():
        file.flush()
        os.fsync(file.fileno())
    write_atomic(part / _DONE, msgspec.json.encode(done).decode())


def _pack(folder: Path, tokens: int, seq_len: int) -> tuple[int, int, int]:
    """Returns the number of sequences, of pieces, and of pairs."""
    starts = np.fromfile(folder / "starts.bin", np.int64)
    pieces, packs = packed(starts, tokens, seq_len)
    for name, array in (("pieces", pieces), ("packs", packs)):
        with _open(folder / f"{name}.bin") as handle:
            handle.write(array.data)
    return len(packs) - 1, len(pieces), int(pieces[:, 2].sum())


def _write_manifest(seq_len: int, folder: Path, fingerprint: str, dtype: Dtype, done: _Done) -> Manifest:
    sequences, pieces, pairs = _pack(folder, done.tokens, seq_len)
    manifest = Manifest(
        fingerprint=fingerprint,
        format=FORMAT,
        seq_len=seq_len,
        dtype=dtype,
        rows=done.rows,
        documents=done.documents,
        tokens=done.tokens,
        sequences=sequences,
        pieces=pieces,
        pairs=pairs,
        too_long=done.too_long,
        rejects=dict(sorted(done.rejects.items(), key=lambda item: -item[1])),
    )
    with _open(folder / "manifest.json") as handle:
        handle.write(msgspec.json.format(msgspec.json.encode(manifest)) + b"\n")
    return manifest


@contextmanager
def _open(path: Path, begin: int = 0) -> Iterator[BinaryIO]:
    """A file that is written from byte `begin` on; whole on the disk when the block ends; never writable by others,
    whatever the umask."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW
    with open(path, "wb", opener=lambda name, _: os.open(name, flags, 0o644)) as handle:
        handle.seek(begin)
        yield handle
        handle.truncate()
        handle.flush()
        os.fsync(handle.fileno())


def _publish(part: Path, folder: Path) -> None:
    for progress in part.glob(f"*{_DONE}*"):
        progress.unlink(missing_ok=True)
    fsync_path(part)
    try:
        part.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
        shutil.rmtree(part, ignore_errors=True)  # another process was first: same name, same content
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
            f"{name}: {manifest.tokens:,} tokens in {manifest.rows:,} rows: no token has a target: give more data"
        )
