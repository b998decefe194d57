from __future__ import annotations

import json
from pathlib import Path

import pytest

from recipes import demo_data
from tests.trainer.data.samples import texts


@pytest.fixture(autouse=True)
def few_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole standard library takes 7 seconds."""
    monkeypatch.setattr(demo_data, "_documents", lambda: (row["text"] for row in texts(101)))


def test_it_is_written_once_and_touches_nothing_else(tmp_path: Path) -> None:
    """The folder may be anybody's: `python -m recipes.demo_data .` must not cost a home."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years")
    assert demo_data.make(tmp_path)
    assert not demo_data.make(tmp_path)
    (tmp_path / "demo_data.stamp").write_text("another Python")
    assert demo_data.make(tmp_path)
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years"
    data = ["chats.jsonl", "chats_evaluation.jsonl", "evaluation.jsonl", "train.jsonl"]
    wanted = sorted([*data, "demo_data.stamp", "mine", "tokenizer"])
    assert sorted(entry.name for entry in tmp_path.iterdir()) == wanted


def test_every_50th_document_is_held_out(tmp_path: Path) -> None:
    demo_data.make(tmp_path)
    held_out = [json.loads(line) for line in (tmp_path / "evaluation.jsonl").read_text().splitlines()]
    assert held_out == [texts(101)[i] for i in (0, 50, 100)]
    assert len((tmp_path / "train.jsonl").read_text().splitlines()) == 98


def test_transformers_loads_the_tokenizer(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    demo_data.make(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokenizer", local_files_only=True)
    messages = [{"role": "user", "content": "the run"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert tokenizer.decode(tokenizer.encode(str(text))) == "<|user|>\nthe run<|end|>\n<|assistant|>\n"
    assert tokenizer.eos_token == "<|endoftext|>"


def test_the_chats_go_on_with_a_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_data, "_documents", lambda: iter(["one line", "def f():\n    first part\n\n    second"]))
    demo_data.make(tmp_path)
    [chat] = map(json.loads, (tmp_path / "chats.jsonl").read_text().splitlines())
    assert [message["content"] for message in chat["messages"]] == ["Go on: def f():", "first part"]
