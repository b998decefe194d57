"""Data for the demo without a download: what every CPython carries (PSF licence).

Its help topics, and the documented modules, classes and functions of its standard library.

    python -m recipes.demo_data [FOLDER]

writes FOLDER/train.jsonl, FOLDER/evaluation.jsonl, chats made of both and FOLDER/tokenizer: the same bytes for the
same Python.
"""

from __future__ import annotations

import ast
import json
import pydoc_data.topics
import sys
import sysconfig
import textwrap
import uuid
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import xxhash
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

_VOCABULARY = 2048
_END_OF_TEXT = "<|endoftext|>"
_CHAT_TOKENS = ["<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]
TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "eos_token": _END_OF_TEXT,
    "pad_token": _END_OF_TEXT,
    "additional_special_tokens": _CHAT_TOKENS,
    "chat_template": "{% for message in messages %}<|{{ message['role'] }}|>\n"
    "{{ message['content'] }}<|end|>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
    "model_max_length": 1 << 20,
}
_HELD_OUT = 50
"""Every 50th document is held out."""
_SHORTEST = 80
"""Characters: shorter documents say little."""
_NOT_EVERYWHERE = {"site-packages", "dist-packages", "test", "tests", "lib2to3"}
"""Folders of a standard library that distributions leave out or add."""


def make(folder: Path) -> bool:
    """Writes the demo's data unless it stands already; True when it was written.

    Replaces its own files one by one and touches nothing else: the folder may be anybody's.
    """
    stamp = f"{sys.version}\n{xxhash.xxh3_128_hexdigest(Path(__file__).read_bytes())}\n"
    stamp_file = folder / "demo_data.stamp"
    if stamp_file.is_file() and stamp_file.read_text() == stamp:
        return False
    documents = list(dict.fromkeys(_documents()))
    train = [text for number, text in enumerate(documents) if number % _HELD_OUT]
    tokenizer = train_tokenizer(train)
    files = {
        "train.jsonl": _rows(train),
        "evaluation.jsonl": _rows(documents[::_HELD_OUT]),
        "chats.jsonl": _chats(train),
        "chats_evaluation.jsonl": _chats(documents[::_HELD_OUT]),
        "tokenizer/tokenizer.json": tokenizer.to_str(),
        "tokenizer/tokenizer_config.json": json.dumps(TOKENIZER_CONFIG, indent=2) + "\n",
        stamp_file.name: stamp,  # last: it stands for all the others
    }
    for name, text in files.items():
        _replace(folder / name, text)
    return True


def _replace(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{uuid.uuid4().hex}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _documents() -> Iterator[str]:
    """The help topics; then what has a docstring: of a module or class just that, of a function its source.

    Docstrings alone are 2.2 million characters, half of what the demo wants.
    """
    yield from (text.strip() for _, text in sorted(pydoc_data.topics.topics.items()))
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.rglob("*.py")):
        if _NOT_EVERYWHERE.isdisjoint(path.relative_to(library).parts):
            yield from _documented(path)


def _documented(path: Path) -> Iterator[str]:
    with warnings.catch_warnings(action="ignore", category=SyntaxWarning):  # invalid escapes in old files
        tree = ast.parse(path.read_bytes())
    lines = path.read_text(encoding="utf-8").splitlines()
    for node in ast.walk(tree):
        match node:
            case ast.Module() | ast.ClassDef():
                text = ast.get_docstring(node) or ""
            case ast.FunctionDef() | ast.AsyncFunctionDef() if ast.get_docstring(node):
                text = textwrap.dedent("\n".join(lines[node.lineno - 1 : node.end_lineno]))
            case _:
                continue
        if len(text) >= _SHORTEST:
            yield text


def _rows(documents: list[str]) -> str:
    return "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in documents)


def _chats(documents: list[str]) -> str:
    """Of each document of several lines: the user gives its first line, the assistant goes on to the next gap."""
    lines = []
    for text in documents:
        first, _, rest = text.partition("\n")
        if answer := rest.strip().partition("\n\n")[0]:
            question = {"role": "user", "content": f"Go on: {first}"}
            row = {"messages": [question, {"role": "assistant", "content": answer}]}
            lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    return "".join(lines)


def train_tokenizer(documents: list[str], vocabulary: int = _VOCABULARY, before: Sequence[Any] = ()) -> Tokenizer:
    """`before`: pre-tokenizers that cut the text before its bytes are looked at."""
    tokenizer = Tokenizer(models.BPE())
    bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*before, bytes_of]) if before else bytes_of
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[_END_OF_TEXT, *_CHAT_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return tokenizer


if __name__ == "__main__":
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "recipes/demo")
    print(f"{target}: {'written' if make(target) else 'stands already'}")
