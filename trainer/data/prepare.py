"""JSONL files -> prepared data, once: tokenized into a folder named by the hash of all that went in."""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal

import msgspec
import numpy as np
import xxhash

from durable import fsync_path
from settings import ConfigError
from trainer.config import Data
from trainer.data.encode import encoder
from trainer.data.prepared import Manifest, Prepared
from trainer.data.rows import COLUMNS, batched, read_rows

__all__ = ["Prepared", "cache_folder", "prepare"]

FORMAT = 1
"""Rises when the same sources give other files."""

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def cache_folder(data: Data, run_dir: Path) -> Path:
    """Where a run's prepared data lies: runs share it, since its folders are named by content."""
    return Path(data.cache) if data.cache else run_dir.parent / ".prepared"


def prepare(
    data: Data,
    tokenizer_folder: str,
    cache: Path,
    split: Literal["train", "evaluation"],
    say: Callable[[str], Any] = print,
) -> Prepared:
    """The prepared data of a split: found in `cache`, or made there. Many processes may call it at once.

    Raises ConfigError when a file is missing, too many rows cannot be used, or no sequence comes out.
    """
    paths = data.train if split == "train" else data.evaluation
    if not paths:
        raise ConfigError(f"data.{split}: no file is given")
    folder = cache / _fingerprint(data, paths, tokenizer_folder)
    if not folder.is_dir():
        _build(data, paths, tokenizer_folder, folder, say)
    prepared = Prepared.open(folder)
    # After the rename: the rejects stay for the user to read, and another max_rejects tokenizes nothing.
    _check(prepared, data, split)
    return prepared


# --- fingerprint ----------------------------------------------------------------------------------------


def _fingerprint(data: Data, paths: list[str], tokenizer_folder: str) -> str:
    files = (Path(tokenizer_folder, name) for name in _TOKENIZER_FILES)
    parts = {
        "format": FORMAT,
        "sources": [_content_hash(Path(path)) for path in paths],
        "tokenizer": {file.name: _content_hash(file) for file in files if file.is_file()},
        "settings": [data.format, data.column or COLUMNS[data.format], data.seq_len],
    }
    return xxhash.xxh3_128_hexdigest(msgspec.json.encode(parts))


def _content_hash(path: Path) -> str:
    digest = xxhash.xxh3_128()
    try:
        with path.open("rb") as handle:
            while block := handle.read(1 << 22):
                digest.update(block)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    return digest.hexdigest()


# --- building -------------------------------------------------------------------------------------------


def _build(data: Data, paths: list[str], tokenizer_folder: str, folder: Path, say: Callable[[str], Any]) -> None:
    """Writes beside and renames once: a folder of prepared data is whole or is not there."""
    began = time.monotonic()
    temporary = folder.with_name(f".tmp-{uuid.uuid4().hex}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary.mkdir(mode=0o755)
    try:
        manifest = _write(data, paths, tokenizer_folder, temporary, folder.name)
        # Files that grow while they are read would stand under a wrong name for every later run.
        if _fingerprint(data, paths, tokenizer_folder) != folder.name:
            raise ConfigError(f"{', '.join(paths)}: changed while being read: start again when complete")
        _publish(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    say(
        f"prepared {manifest.documents:,} documents, {manifest.tokens:,} tokens, "
        f"{manifest.sequences:,} sequences of {manifest.seq_len}: {time.monotonic() - began:.1f} s, {folder}"
    )


def _write(data: Data, paths: list[str], tokenizer_folder: str, folder: Path, fingerprint: str) -> Manifest:
    encode, dtype = encoder(Path(tokenizer_folder), data.format)
    rows = documents = written = 0
    rejects: Counter[str] = Counter()
    with (
        _new_file(folder / "tokens.bin") as tokens,
        _new_file(folder / "documents.bin") as owners,
        _new_file(folder / "loss.bin") as loss,
        _new_file(folder / "starts.bin") as starts,
        _new_file(folder / "rejects.jsonl") as rejected,
    ):
        for batch in batched(read_rows(paths, data.format, data.column or COLUMNS[data.format])):
            rows += len(batch)
            encoded = iter(encode([row.value for row in batch if row.reason is None]))
            for row in batch:
                result = row.reason or next(encoded)
                if isinstance(result, str):
                    rejects[result] += 1
                    line = {"file": row.file, "line": row.line, "reason": result}
                    rejected.write(msgspec.json.encode(line) + b"\n")
                    continue
                tokens.write(np.array(result.ids, dtype).tobytes())
                owners.write(np.full(len(result.ids), documents, np.int32).tobytes())
                loss.write(result.loss.tobytes())
                starts.write(np.int64(written).tobytes())
                documents += 1
                written += len(result.ids)
    sequences = max(0, written - 1) // data.seq_len
    left_out = written - sequences * data.seq_len - 1 if sequences else written
    manifest = Manifest(
        fingerprint=fingerprint,
        format=FORMAT,
        seq_len=data.seq_len,
        dtype=dtype,
        rows=rows,
        documents=documents,
        tokens=written,
        sequences=sequences,
        left_out=left_out,
        rejects=dict(rejects.most_common()),
    )
    with _new_file(folder / "manifest.json") as handle:
        handle.write(msgspec.json.format(msgspec.json.encode(manifest)) + b"\n")
    return manifest


@contextmanager
def _new_file(path: Path) -> Iterator[BinaryIO]:
    """A new file, on the disk when the block ends; never writable by others, whatever the umask."""
    with open(path, "xb", opener=lambda name, flags: os.open(name, flags, 0o644)) as handle:
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


def _check(prepared: Prepared, data: Data, split: str) -> None:
    """Raises ConfigError when too many rows were rejected, or no sequence is there."""
    manifest, file = prepared.manifest, prepared.folder / "rejects.jsonl"
    count = sum(manifest.rejects.values())
    if count > data.max_rejects * manifest.rows:
        with file.open("rb") as lines:
            first = msgspec.json.decode(lines.readline())
        reasons = ", ".join(f"{reason}: {n:,}" for reason, n in manifest.rejects.items())
        raise ConfigError(
            f"data.{split}: {count:,} of {manifest.rows:,} rows cannot be used ({reasons}), more than "
            f"data.max_rejects={data.max_rejects:g} allows; the first is {first['file']}:{first['line']}: "
            f"mend the rows that {file} lists, or raise data.max_rejects"
        )
    if not prepared.sequences:
        raise ConfigError(
            f"data.{split}: {manifest.tokens:,} tokens in {manifest.rows:,} rows fill no sequence of "
            f"data.seq_len={prepared.seq_len} and its last target: give more data or a smaller data.seq_len"
        )
