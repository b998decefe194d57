"""`python -m trainer.vocabulary RECIPE [key=value ...]`: texts of the training data that deserve a token of their own.

Candidates are words as they stand between spaces: form codes, units, formulas. They are ranked by the tokens that they
save, printed, and written to a file that model.new_tokens takes.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from durable import write_atomic
from settings import ConfigError
from trainer import config, recipe
from trainer.data.display import printable
from trainer.data.encode import load_tokenizer
from trainer.data.rows import Rows
from trainer.data.values import Chat, Completion
from trainer.exits import CONFIG, DONE
from trainer.model import new_tokens
from trainer.sources import Data

DOCUMENTS = 20_000
"""The first so many are looked at: frequent texts are frequent there."""
LONGEST = 64
"""Characters of a candidate."""
SEEN = 3
"""Times that a candidate stands in them at least."""
_WORD = re.compile(r" ?[^\s]+")
_AROUND = "\"'`.,;:!?()[]{}<>\u201c\u201d\u2018\u2019\u2026"
"""Punctuation around a word that is no part of it."""


@dataclass(frozen=True)
class Candidate:
    """A text that may become a token."""

    text: str
    pieces: list[str]
    """What it is made of now."""
    count: int

    @property
    def saved(self) -> int:
        """Tokens, if it became one."""
        return self.count * (len(self.pieces) - 1)


def suggest(tokenizer: Any, documents: list[str], wanted: int) -> list[Candidate]:
    """Those that save most, the best first."""
    counts = Counter(word for document in documents for word in words(document))
    frequent = [text for text, count in counts.items() if count >= SEEN]
    encodings = tokenizer.encode_batch(frequent, add_special_tokens=False)
    found = (Candidate(text, one.tokens, counts[text]) for text, one in zip(frequent, encodings, strict=True))
    # A text that is in the vocabulary as it stands may still be cut, by a tokenizer that never makes it.
    able = (one for one in found if one.saved > 0 and tokenizer.token_to_id(one.text) is None)
    return sorted(able, key=lambda one: (-one.saved, one.text))[:wanted]


def words(document: str) -> Iterator[str]:
    """Each with the space before it, where there is one: most tokenizers join the two."""
    for match in _WORD.finditer(document):
        bare = match[0].strip(_AROUND + " ")
        text = f" {bare}" if match[0].startswith(f" {bare[:1]}") else bare
        if len(text) <= LONGEST and any(letter.isalnum() for letter in text):
            yield text


def texts(data: Data) -> Iterator[str]:
    """Every training document's text; of a chat that of its messages."""
    for source in (one for key, one in data.sources.items() if key.split(".")[0] == "train"):
        for row in Rows(source):
            match row.value:
                case Chat():
                    yield "\n".join(str(message.get("content") or "") for message in row.value.messages)
                case Completion():
                    yield f"{row.value.prompt}\n{row.value.completion}"
                case str():
                    yield row.value


def table(found: list[Candidate], documents: int) -> str:
    """For a person; the second column is what decides."""
    lines = [f"{'times':>9}{'saved per document':>20}  {'token':<24} now"]
    for one in found:
        lines.append(
            f"{one.count:>9,}{one.saved / documents:>20.3f}  {one.text!r:<24} {printable('|'.join(one.pieces))}"
        )
    return "\n".join(lines)


def _length(tokenizer: Any, documents: list[str]) -> float:
    """Mean tokens of a document."""
    return sum(len(one.ids) for one in tokenizer.encode_batch(documents, add_special_tokens=False)) / len(documents)


def main(argv: list[str]) -> int:
    """Exit code. What is suggested is tried: the tokens of a document before and after are counted, not reckoned."""
    out = argparse.ArgumentParser(prog="python -m trainer.vocabulary", description=__doc__, allow_abbrev=False)
    out.add_argument("recipe", type=Path, metavar="RECIPE", help="a recipe, or RUN_DIR/config.yaml")
    out.add_argument("words", nargs="*", metavar="key=value")
    out.add_argument("--suggest", type=int, default=500, metavar="N", help="so many tokens; default: 500")
    out.add_argument("--out", type=Path, metavar="FILE", help="default: new_tokens.txt")
    args = out.parse_intermixed_args(argv)
    try:
        if args.suggest < 1:
            raise ConfigError(f"--suggest {args.suggest}: a number of tokens, from 1 on")
        tree, _ = recipe.translated(recipe.overridden(recipe.read(args.recipe), args.words))
        settings = config.resolve({key: value for key, value in tree.items() if key != "job"}, str(args.recipe))
        config.check_files(settings, str(args.recipe))
        print(_suggested(settings.data, settings.model.tokenizer_folder, args.suggest, args.out))
    except ConfigError as error:
        print(f"outlast: {error}", file=sys.stderr)
        return CONFIG
    except OSError as error:
        print(f"outlast: {error.filename}: {error.strerror}", file=sys.stderr)
        return CONFIG
    return DONE


def _suggested(data: Data, folder: str, wanted: int, file: Path | None) -> str:
    tokenizer = load_tokenizer(Path(folder))
    documents = list(islice(texts(data), DOCUMENTS))
    found = suggest(tokenizer, documents, wanted)
    if not found:
        raise ConfigError(f"no text in {len(documents):,} documents would save a token")
    before, file = _length(tokenizer, documents), file or Path("new_tokens.txt")
    after = _length(new_tokens.with_texts(folder, tuple(one.text for one in found)).tokenizer, documents)
    write_atomic(file, "".join(f"{one.text}\n" for one in found))
    fewer = f"{before:.1f} tokens each, {after:.1f} with these {len(found)}: {1 - after / before:.1%} fewer"
    said = f"{len(documents):,} documents: {fewer}\ntake them by model.new_tokens={file}"
    return f"{table(found, len(documents))}\n{said}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
