"""English prose that stands wherever Outlast's own environment does: what docstrings say in whole sentences.

Those of Python's standard library and of packages pinned in constraints.txt. No paragraph stands twice, nor one that
differs only in names of code; each file belongs to one split alone, by the hash of its name. The same for the same
versions.
"""

from __future__ import annotations

import ast
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import xxhash

PACKAGES = ("torch", "numpy", "huggingface_hub", "datasets")
NOT_TEXT = {"site-packages", "test", "tests", "testing", "lib2to3", "idlelib", "ensurepip"}
SPLITS = ("train", "kept", "held_out")
"""kept: text that the model was not trained on, for replay and EWC, as a user has it who knows of what kind a model's
training data was, and does not have it."""
_SHARES = {"held_out": 1, "kept": 3}  # of 20; the others are `train`
_WORD = re.compile(r"[a-z]+[,.;:]?|[A-Z][a-z]+[,.]?|[aAI]")
_FEWEST, _WORDS = 8, 0.75  # words in a paragraph; share of them that are plain English ones

Document = tuple[str, list[str]]
"""Name of its file, and the pieces of which none may stand twice."""


def versions() -> dict[str, str]:
    """What the text depends on."""
    return {"python": sys.version, **{name: version(name) for name in PACKAGES}}


def prose() -> Iterator[Document]:
    for package in ("", *PACKAGES):
        root = folder_of(package) if package else Path(sysconfig.get_path("stdlib"))
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


def folder_of(package: str) -> Path:
    """Without an import of it."""
    spec = find_spec(package)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


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
