"""Names of data in a recipe -> files: a file, a folder, or a glob. Loads no library: a login node does it at once."""

from __future__ import annotations

import glob
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from settings import ConfigError

FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "txt",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
}
"""Format by suffix."""
COLUMNAR = ("parquet", "arrow")
"""They compress their columns themselves."""
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")

_BESIDE = ("", ".md", ".py")
"""Suffixes of what lies beside the data in a folder: a licence, a card, a script."""
_METADATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
_SPLIT = re.compile(r"(?:^|[-_./])(train|training|validation|valid|val|dev|test|eval)(?=[-_./0-9]|$)", re.IGNORECASE)


def format_of(path: str) -> tuple[str, str]:
    """The format of a file and its compression, by its suffixes; "" for none. Raises ConfigError."""
    stem, suffix = os.path.splitext(path)
    compression = suffix.lower() if suffix.lower() in COMPRESSIONS else ""
    if compression:
        suffix = os.path.splitext(stem)[1]
    found = FORMATS.get(suffix.lower())
    if found is None:
        known = f"{', '.join(FORMATS)}; compressed {', '.join(COMPRESSIONS)}"
        raise ConfigError(f"{path}: the suffix {suffix or '(none)'} names no format that is read: {known}")
    if compression and found in COLUMNAR:
        raise ConfigError(f"{path}: {found} is compressed inside: {compression} around it is not read: uncompress it")
    return found, compression


def find(names: list[str]) -> list[str]:
    """The files that names stand for, in the order of the names; of a folder or a glob sorted. Raises ConfigError."""
    return [file for name in names for file in _find(name)]


def _find(name: str) -> list[str]:
    if os.path.isdir(name):
        return _folder(name)
    if os.path.isfile(name):
        found = [name]
    elif glob.has_magic(name):
        found = sorted(path for path in glob.iglob(name, recursive=True) if os.path.isfile(path))
    else:
        raise ConfigError(f"there is no file {name}")
    if not found:
        raise ConfigError(f"no file is called like {name}")
    for path in found:
        format_of(path)
    return found


def _folder(folder: str) -> list[str]:
    """All data below a folder; or the files of a dataset that `datasets` has saved there."""
    splits = _json(folder, "dataset_dict.json").get("splits")
    if splits:
        raise ConfigError(f"{folder} holds the splits {', '.join(splits)}: name one: {folder}/{splits[0]}")
    if state := _json(folder, "state.json").get("_data_files"):
        return [os.path.join(folder, part["filename"]) for part in state]  # its own order of rows
    found = sorted(
        os.path.relpath(os.path.join(where, name), folder)
        for where, names in _walked(folder)
        for name in names
        if name not in _METADATA and os.path.splitext(name)[1] not in _BESIDE and not name.startswith(".")
    )
    if not found:
        raise ConfigError(f"the folder {folder} holds no data")
    formats = Counter(format_of(os.path.join(folder, path))[0] for path in found)
    if len(formats) > 1:
        counts = ", ".join(f"{count:,} {name}" for name, count in formats.items())
        raise ConfigError(
            f"{folder} holds several formats ({counts}): name one by a glob: {folder}/**/*.{min(formats)}"
        )
    # Training on the test set is a mistake that no curve shows.
    found_splits = sorted({word.lower() for path in found for word in _SPLIT.findall(path)[:1]})
    if len(found_splits) > 1:
        raise ConfigError(
            f"{folder} holds the splits {', '.join(found_splits)}: name one by a glob: {folder}/**/{found_splits[0]}*"
        )
    return [os.path.join(folder, path) for path in found]


def _walked(folder: str) -> Iterator[tuple[str, list[str]]]:
    """Each folder below with its files' names, also what a link leads to, once. One that cannot be read is an error:
    nobody would hear of what was left out."""

    def unreadable(error: OSError) -> None:
        raise ConfigError(f"{error.filename}: {error.strerror}")

    seen = set()
    for where, folders, names in os.walk(folder, onerror=unreadable, followlinks=True):
        place = os.path.realpath(where)
        folders[:] = [] if place in seen else [name for name in folders if not name.startswith(".")]
        if place not in seen:
            seen.add(place)
            yield where, names


def _json(folder: str, name: str) -> dict[str, Any]:
    try:
        found = json.loads(Path(folder, name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{Path(folder, name)}: cannot be read: {error}") from None
    return found if isinstance(found, dict) else {}
