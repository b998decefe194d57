"""What a person sees of a preparation."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from tests.trainer.data.samples import texts, write_rows, write_tokenizer
from trainer.data import display
from trainer.data.encode import load_tokenizer
from trainer.data.prepare import prepare
from trainer.sources import Data


def console(terminal: bool) -> Console:
    return Console(
        file=io.StringIO(), force_terminal=terminal, width=100, color_system="standard" if terminal else None
    )


def said(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_bar_on_a_terminal_and_lines_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(display, "_LINE_SECONDS", 0.0)
    for terminal in (True, False):
        with display.Display("train", where := console(terminal)) as shown:
            shown.watch(250, 1000)
            shown.say("the [run] goes on")
            shown.watch(1000, 1000)
        assert "the [run] goes on\n" in said(where)
        assert ("━" in said(where)) == terminal
        assert ("train: 25% of 0.00 GB, " in said(where)) == (not terminal)


def test_what_is_found_prepared_shows_no_bar() -> None:
    with display.Display("train", where := console(True)):
        pass
    assert said(where) == ""


def test_samples_show_what_is_trained_on(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "the run \x1b[2J"}, {"role": "assistant", "content": "goes [red]on"}]
    file, tokenizer = write_rows(tmp_path / "a.jsonl", [{"messages": chat}] * 9), write_tokenizer(tmp_path / "t")
    prepared = prepare(Data([file], seq_len=8, format="chat"), tokenizer, tmp_path / "c", "train", lambda _: None)
    where = console(True)
    where.print(*display.samples(prepared, load_tokenizer(Path(tokenizer)), 2, marks=False), sep="\n", soft_wrap=True)
    assert "document 0 of 9: " in said(where) and "document 4 of 9: " in said(where)
    assert "\x1b[32mgoes [red]on<|end|>" in said(where) and "\x1b[2J" not in said(where)
    where = console(False)
    where.print(*display.samples(prepared, load_tokenizer(Path(tokenizer)), 1, marks=True), soft_wrap=True)
    assert said(where).endswith("<|user|>\nthe run ␛[2J<|end|>\n<|assistant|>\n«goes [red]on<|end|>\n»\n")


def test_a_long_text_is_shown_without_its_middle(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "a.jsonl", [{"text": "goes on " * 500}, *texts(9)])
    tokenizer = write_tokenizer(tmp_path / "t")
    prepared = prepare(Data([file], seq_len=8), tokenizer, tmp_path / "c", "train", lambda _: None)
    [text] = display.samples(prepared, load_tokenizer(Path(tokenizer)), 1, marks=False)
    assert " tokens ...] " in text.plain and len(text.plain) < 3000


def test_a_terminal_obeys_no_row() -> None:
    assert display.printable("a\x1b[2J\x9b31m\x0eb\n\tc") == "a\u241b[2J\u241b31m\u241bb\n\tc"
