"""RUN_DIR/evaluation/<name>/: what was asked of which model (about.json), the answers so far, and their scores."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from itertools import count
from pathlib import Path
from typing import Any

from durable import append_lines, read_lines, write_atomic
from settings import read_json

ABOUT, ANSWERS, SCORES = "about.json", "answers.jsonl", "scores.json"


def called(file: str) -> str:
    """The name of the evaluation on a file."""
    return Path(file).name.lstrip(".").partition(".")[0] or "data"


class Folder:
    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def about(self) -> dict[str, Any] | None:
        file = self.path / ABOUT
        return read_json(file) if file.is_file() else None

    @property
    def scores(self) -> dict[str, Any] | None:
        """None: the evaluation has not come to its end."""
        file = self.path / SCORES
        return read_json(file) if file.is_file() else None

    def answers(self) -> dict[str, dict[str, Any]]:
        """By id; of a batch that a kill tore, what is whole."""
        return {line["id"]: line for line in read_lines(self.path / ANSWERS) if "answer" in line}

    def open(self, about: Mapping[str, Any]) -> Path | None:
        """For answers to just this. What lies there and answers something else is set aside; returns its new place."""
        aside = None
        if self.path.exists() and self.about != about:
            places = (self.path.with_name(f"{self.path.name}-{number}") for number in count(1))
            aside = next(place for place in places if not place.exists())
            self.path.rename(aside)
        if not self.path.exists():
            self.path.mkdir(parents=True)
            write_atomic(self.path / ABOUT, _json(about))
        return aside

    def append(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Durable when this returns."""
        append_lines(self.path / ANSWERS, lines, sync=True)

    def close(self, lines: Iterable[Mapping[str, Any]], scores: Mapping[str, Any]) -> None:
        """The answers once more in the order of the rows, then the scores: where these are, those are whole."""
        write_atomic(self.path / ANSWERS, "".join(json.dumps(line) + "\n" for line in lines))
        write_atomic(self.path / SCORES, _json(scores))


def _json(values: Mapping[str, Any]) -> str:
    return json.dumps(values, indent=2) + "\n"
