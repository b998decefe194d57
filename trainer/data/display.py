"""What a person sees of a preparation: how far it is, and what its samples look like."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text
from tokenizers import Tokenizer

from trainer.data.prepared import Prepared

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_LINE_SECONDS = 30.0
_SHOWN = 150
"""Tokens at each end of a text that is too long to be shown."""


class Display:
    """How far a preparation is: a bar with rate and remaining time on a terminal, else a line now and then."""

    def __init__(self, key: str, console: Console) -> None:
        columns = (BarColumn(), TaskProgressColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        self._key, self._console = key, console
        self._bar = Progress(TextColumn(key), *columns, console=console, disable=not console.is_terminal)
        self._task: Any = None
        self._began = self._said = time.monotonic()

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def watch(self, done: int, size: int) -> None:
        """Bytes that are read, of how many."""
        if self._console.is_terminal:
            if self._task is None:  # what is found prepared shows no bar
                self._task = self._bar.add_task(self._key, total=size)
                self._bar.start()
            self._bar.update(self._task, completed=done)
        elif (now := time.monotonic()) >= self._said + _LINE_SECONDS:
            self._said = now
            rate = done / (now - self._began)
            left = (size - done) / rate / 60 if rate else 0.0
            self.say(
                f"{self._key}: {done / size:.0%} of {size / 1e9:.2f} GB, {rate / 1e6:.1f} MB/s, {left:.0f} min left"
            )


def printable(text: str) -> str:
    """A row's, or a tokenizer's, without what a terminal would obey."""
    return _CONTROL.sub("\u241b", text)


def samples(prepared: Prepared, tokenizer: Tokenizer, count: int, marks: bool) -> Iterator[Text]:
    """`count` documents from all over the data. What is trained on is green; with `marks` it stands in angle quotes
    besides, for where there is no colour."""
    documents = prepared.manifest.documents
    for number in sorted({documents * i // count for i in range(count)} if documents else ()):
        begin = int(prepared.starts[number])
        end = int(prepared.starts[number + 1]) if number + 1 < documents else prepared.manifest.tokens
        ids, loss = prepared.tokens[begin:end], prepared.loss[begin:end]
        text = Text()
        text.append(
            f"document {number:,} of {documents:,}: {end - begin:,} tokens, {int(loss.sum()):,} trained on\n",
            "bold cyan",
        )
        edges = [0, *(np.flatnonzero(np.diff(loss)) + 1).tolist(), end - begin]
        for first, last in itertools.pairwise(edges):
            words = _words(tokenizer, ids[first:last].tolist())
            text.append(f"«{words}»" if loss[first] and marks else words, "green" if loss[first] else "dim")
        yield text


def _words(tokenizer: Tokenizer, ids: list[int]) -> str:
    """A long text without its middle."""
    left_out = len(ids) - 2 * _SHOWN
    if left_out <= 0:
        words = str(tokenizer.decode(ids, skip_special_tokens=False))
        return printable(words)
    return f"{_words(tokenizer, ids[:_SHOWN])} [... {left_out:,} tokens ...] {_words(tokenizer, ids[-_SHOWN:])}"
