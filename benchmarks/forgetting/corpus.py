"""Two kinds of real text that stand wherever Outlast's own environment does: English prose, and C++.

General: what docstrings of Python's standard library and of packages pinned in constraints.txt say in whole sentences.
Domain: headers of C++ that torch ships. No paragraph of prose and no header stands twice, nor one that differs only in
names of code; each file belongs to one split alone, by the hash of its name. The same bytes for the same versions.
"""

from __future__ import annotations

import ast
import json
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import xxhash

from durable import write_atomic
from recipes.demo_data import TOKENIZER_CONFIG, train_tokenizer

PACKAGES = ("torch", "numpy", "huggingface_hub", "datasets")
HEADERS = ("ATen/core", "c10/core", "c10/util")
"""Written by hand; those of ATen/ops and others are generated, and much alike."""
NOT_TEXT = {"site-packages", "test", "tests", "testing", "lib2to3", "idlelib", "ensurepip"}
SPLITS = {"general": ("train", "kept", "held_out"), "domain": ("train", "held_out")}
"""kept: general text that the model was not trained on, for replay and EWC, as a user has it who knows of what kind a
model's training data was, and does not have it."""
_SHARES = {"held_out": 1, "kept": 3}  # of 20; the others are `train`
_WORD = re.compile(r"[a-z]+[,.;:]?|[A-Z][a-z]+[,.]?|[aAI]")
_FEWEST, _WORDS = 8, 0.75  # words in a paragraph; share of them that are plain English ones

Document = tuple[str, list[str]]
"""Name of its file, and the pieces of which none may stand twice."""


def make(folder: Path) -> str:
    """Writes a JSONL file for each split, and a tokenizer trained on the general one, unless they stand; hands back
    the fingerprint of all."""
    stamp = folder / "corpus.json"
    asked = {"versions": versions(), "builder": xxhash.xxh3_128_hexdigest(Path(__file__).read_bytes())}
    if stamp.is_file() and (found := json.loads(stamp.read_text()))["asked"] == asked:
        return str(found["fingerprint"])
    kinds = {"general": prose(), "domain": headers()}
    files = {
        f"{kind}_{split}.jsonl": _rows(texts)
        for kind, documents in kinds.items()
        for split, texts in divided(documents, SPLITS[kind]).items()
    }
    tokenizer = train_tokenizer([json.loads(line)["text"] for line in files["general_train.jsonl"].splitlines()])
    files["tokenizer/tokenizer.json"] = tokenizer.to_str()
    files["tokenizer/tokenizer_config.json"] = json.dumps(TOKENIZER_CONFIG, indent=2) + "\n"
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / name, text)
    fingerprint = xxhash.xxh3_128_hexdigest(json.dumps(files, sort_keys=True).encode())
    write_atomic(stamp, json.dumps({"asked": asked, "fingerprint": fingerprint}) + "\n")  # last: it stands for all
    return fingerprint


def versions() -> dict[str, str]:
    return {"python": sys.version, **{name: version(name) for name in PACKAGES}}


def divided(documents: Iterable[Document], splits: Iterable[str]) -> dict[str, list[str]]:
    """Texts by split: all those of one file in the same one, and none twice."""
    found: dict[str, list[str]] = {split: [] for split in splits}
    seen: set[str] = set()
    for name, pieces in documents:
        fresh = []
        for piece in pieces:
            if (key := plain(piece)) not in seen:
                seen.add(key)
                fresh.append(piece)
        if fresh:
            found[split_of(name, found)].append("\n\n".join(fresh))
    return found


def plain(piece: str) -> str:
    """Its plain words: what tells it from others whatever names of code and signs stand in it."""
    words = [word.strip(",.;:").lower() for word in piece.split() if _WORD.fullmatch(word)]
    return " ".join(words) if len(words) >= _FEWEST else piece


def split_of(name: str, splits: Iterable[str]) -> str:
    place = xxhash.xxh64_intdigest(name.encode()) % 20
    for split in (split for split in splits if split in _SHARES):
        if place < _SHARES[split]:
            return split
        place -= _SHARES[split]
    return "train"


# --- general --------------------------------------------------------------------------------------------------


def prose() -> Iterator[Document]:
    for package in ("", *PACKAGES):
        root = _folder(package) if package else Path(sysconfig.get_path("stdlib"))
        for path in sorted(root.rglob("*.py")):
            within = path.relative_to(root)
            if NOT_TEXT.isdisjoint(within.parts):
                for docstring in _docstrings(path):
                    yield f"{package}/{within.as_posix()}", list(sentences(docstring))


def sentences(docstring: str) -> Iterator[str]:
    """Its paragraphs of plain English, each on one line."""
    for paragraph in re.split(r"\n\s*\n", docstring):
        words = paragraph.split()
        known = sum(1 for word in words if _WORD.fullmatch(word))
        text = " ".join(words)
        if len(words) >= _FEWEST and known >= _WORDS * len(words) and text[0].isupper() and text[-1] in ".!?:":
            yield text


def _docstrings(path: Path) -> Iterator[str]:
    with warnings.catch_warnings(action="ignore", category=SyntaxWarning):  # invalid escapes in old files
        try:
            tree = ast.parse(path.read_bytes())
        except SyntaxError:  # templates of code
            return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""


# --- domain ---------------------------------------------------------------------------------------------------


def headers() -> Iterator[Document]:
    root = _folder("torch") / "include"
    for name in HEADERS:
        for path in sorted((root / name).rglob("*.h")):
            yield path.relative_to(root).as_posix(), [path.read_text(encoding="utf-8", errors="replace").strip()]


def _folder(package: str) -> Path:
    """Without an import of it."""
    spec = find_spec(package)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


def _rows(texts: list[str]) -> str:
    return "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
