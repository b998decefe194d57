from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from settings import ConfigError
from tests.trainer.data.samples import prepare_texts, texts, write_rows, write_tokenizer
from trainer.data.batches import evaluation_batches
from trainer.data.prepare import _write, prepare
from trainer.data.prepared import Manifest, Prepared
from trainer.layout import BatchLayout
from trainer.sources import Data, Source


@pytest.fixture
def tokenizer(tmp_path: Path) -> str:
    return write_tokenizer(tmp_path / "tokenizer")


def run(tmp_path: Path, tokenizer: str, rows: list[Any], **settings: Any) -> Prepared:
    data = Data(train=[write_rows(tmp_path / "rows.jsonl", rows)], **{"seq_len": 8, **settings})
    return prepare(data, tokenizer, tmp_path / "cache", "train", say=lambda _: None)


def decode(tokenizer: str, ids: Any) -> str:
    return Tokenizer.from_file(f"{tokenizer}/tokenizer.json").decode(list(ids), skip_special_tokens=False)


def test_a_held_out_set_may_have_a_shorter_length(tmp_path: Path, tokenizer: str) -> None:
    file = write_rows(tmp_path / "rows.jsonl", texts(60))
    held_out = {"long": Source([file]), "short": Source([file], seq_len=4)}
    data = Data([file], seq_len=8, evaluation=held_out)
    found = {key: prepare(data, tokenizer, tmp_path / "cache", key, say=lambda _: None) for key in data.sources}
    assert {key: one.seq_len for key, one in found.items()} == {
        "train": 8,
        "evaluation.long": 8,
        "evaluation.short": 4,
    }
    assert found["evaluation.long"].folder == found["train"].folder  # the same data under another name
    [batch] = list(evaluation_batches(found["evaluation.short"], BatchLayout(2, 1, 1), 0, 1))[:1]
    assert batch.micro_batches[0].input_ids.shape == (2, 4)


def test_the_second_call_finds_the_first(tmp_path: Path) -> None:
    first = prepare_texts(tmp_path)
    files = {file.name: file.stat().st_mtime_ns for file in first.folder.iterdir()}
    again = prepare_texts(tmp_path)
    assert again == first
    assert {file.name: file.stat().st_mtime_ns for file in again.folder.iterdir()} == files
    assert [entry.name for entry in first.folder.parent.iterdir()] == [first.fingerprint]


def test_documents_follow_each_other_each_with_its_end(tmp_path: Path, tokenizer: str) -> None:
    prepared = run(tmp_path, tokenizer, [{"text": "the run"}, {"text": "goes on"}, {"text": "until it is done"}])
    end = "<|endoftext|>"
    assert decode(tokenizer, prepared.tokens) == f"the run{end}goes on{end}until it is done{end}"
    starts = prepared.starts.tolist()
    assert [i for i, counts in enumerate(prepared.loss) if not counts] == starts


def test_counts_add_up(tmp_path: Path) -> None:
    manifest = prepare_texts(tmp_path).manifest
    assert manifest.pairs == manifest.tokens - manifest.documents
    assert 0.9 < manifest.fill == manifest.pairs / (manifest.sequences * manifest.seq_len) <= 1


@pytest.mark.parametrize("change", [{"seq_len": 9}, {"format": "chat"}, {"column": "other"}])
def test_other_settings_are_other_data(tmp_path: Path, tokenizer: str, change: dict[str, Any]) -> None:
    messages = [
        {"role": "user", "content": "the run"},
        {"role": "assistant", "content": "goes on until done"},
    ]
    rows = [{"text": "the run goes on", "other": "until it is done", "messages": messages}] * 9
    assert run(tmp_path, tokenizer, rows).fingerprint != run(tmp_path, tokenizer, rows, **change).fingerprint


def test_other_tokenizer_is_other_data(tmp_path: Path, tokenizer: str) -> None:
    before = run(tmp_path, tokenizer, texts(9)).fingerprint
    Path(tokenizer, "chat_template.jinja").write_text("{{ messages }}")
    assert run(tmp_path, tokenizer, texts(9)).fingerprint != before


RACE = """
import sys
from collections.abc import Callable
from pathlib import Path
from trainer.layout import BatchLayout
from trainer.sources import Data, Source
from trainer.data.prepare import prepare
rows, tokenizer, cache = sys.argv[1:]
input()
print(prepare(Data(train=[rows], seq_len=8), tokenizer, Path(cache), "train", say=lambda _: None).fingerprint)
"""


def test_processes_at_once(tmp_path: Path, tokenizer: str) -> None:
    rows, cache = write_rows(tmp_path / "rows.jsonl", texts(200)), tmp_path / "cache"
    command = [sys.executable, "-c", RACE, rows, tokenizer, str(cache)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **pipes) for _ in range(3)]
    found = {process.communicate("\n")[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert {entry.name for entry in cache.iterdir()} == found


def test_the_loser_of_the_rename_uses_the_winners_folder(
    tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    winner = []

    def write(*arguments: Any) -> Manifest:
        monkeypatch.undo()
        winner.append(run(tmp_path, tokenizer, texts(9)))  # another process, faster
        return _write(*arguments)

    monkeypatch.setattr("trainer.data.prepare._write", write)
    assert run(tmp_path, tokenizer, texts(9)) == winner[0]
    assert list((tmp_path / "cache").iterdir()) == [winner[0].folder]


def test_files_that_change_while_being_read_are_refused(
    tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(source: Source, *arguments: Any) -> Manifest:
        with Path(source.files[0]).open("a") as file:
            file.write("\n")
        return _write(source, *arguments)

    monkeypatch.setattr("trainer.data.prepare._write", write)
    with pytest.raises(ConfigError, match="changed while being read"):
        run(tmp_path, tokenizer, texts(9))
    assert list((tmp_path / "cache").iterdir()) == []


REJECTS: list[tuple[Any, str]] = [
    (b"{", "not valid JSON"),
    (b'{"text": "\xff"}', "not valid UTF-8"),
    (b'{"text": "\\ud800"}', "not valid JSON"),
    ([1], "not an object"),
    ({"body": "x"}, "no column 'text'"),
    ({"text": 3}, "'text' is not a text"),
    ({"text": "  "}, "empty"),
]
BAD = "a message is not {role, content} with a text as content"
CHAT_REJECTS: list[tuple[Any, str]] = [
    ("hello", "'messages' is not a list of messages"),
    ([], "empty"),
    (["hello"], BAD),
    ([{"role": "user", "content": None}], BAD),
    ([{"role": "robot", "content": "x"}], "unknown role"),
    ([{"role": "user", "content": "x"}], "no completion tokens"),
]


def test_every_kind_of_reject_is_kept_with_its_line(tmp_path: Path, tokenizer: str) -> None:
    rows = [row for bad, _ in REJECTS for row in (bad, b"", {"text": "the run goes on"})]
    prepared = run(tmp_path, tokenizer, rows, max_rejects=0.5)
    lines = [json.loads(line) for line in (prepared.folder / "rejects.jsonl").read_text().splitlines()]
    wanted = [(3 * i + 1, reason) for i, (_, reason) in enumerate(REJECTS)]
    assert [(line["line"], line["reason"]) for line in lines] == wanted
    assert {line["file"] for line in lines} == {str(tmp_path / "rows.jsonl")}
    assert prepared.manifest.rows == 14 and prepared.manifest.documents == 7


def test_rejects_of_chats(tmp_path: Path, tokenizer: str) -> None:
    good = [{"role": "user", "content": "the run"}, {"role": "assistant", "content": "goes on"}]
    rows = [{"messages": messages} for messages in [*(bad for bad, _ in CHAT_REJECTS), good, good]]
    prepared = run(tmp_path, tokenizer, rows, format="chat", max_rejects=0.9)
    lines = [json.loads(line) for line in (prepared.folder / "rejects.jsonl").read_text().splitlines()]
    assert [line["reason"] for line in lines] == [reason for _, reason in CHAT_REJECTS]
    assert prepared.manifest.documents == 2


def test_too_many_rejects_are_one_line_that_helps(tmp_path: Path, tokenizer: str) -> None:
    rows = [*texts(7), {"text": ""}, b"{", {"text": ""}]
    with pytest.raises(ConfigError) as error:
        run(tmp_path, tokenizer, rows)
    [folder] = (tmp_path / "cache").iterdir()
    assert str(error.value) == (
        "data.train: 3 of 10 rows cannot be used (empty: 2, not valid JSON: 1), more than "
        f"data.max_rejects=0.01 allows; the first is {tmp_path}/rows.jsonl:8: mend the rows that "
        f"{folder}/rejects.jsonl lists, or raise data.max_rejects"
    )
    assert run(tmp_path, tokenizer, rows, max_rejects=0.3).folder == folder  # nothing is tokenized again


@pytest.mark.parametrize("rows", [[], [b"{"]])
def test_no_sequence_at_all_is_refused(tmp_path: Path, tokenizer: str, rows: list[Any]) -> None:
    with pytest.raises(ConfigError, match="data.train: 0 tokens in . rows: no token has a target"):
        run(tmp_path, tokenizer, rows, max_rejects=1.0)


def test_missing_files_are_refused(tmp_path: Path, tokenizer: str) -> None:
    data = Data(train=["nowhere.jsonl"], seq_len=8)
    with pytest.raises(ConfigError, match=r"^nowhere.jsonl: cannot be read: No such file"):
        prepare(data, tokenizer, tmp_path, "train")
    with pytest.raises(ConfigError, match=r"^data.evaluation: no file is given"):
        prepare(data, tokenizer, tmp_path, "evaluation")


def test_a_cache_that_another_user_has_made_beside_the_runs_is_refused(
    tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What they put there would be trained on, and they would read what is prepared."""
    cache = tmp_path / "runs" / ".prepared"
    cache.mkdir(parents=True)
    monkeypatch.setattr("trainer.data.prepare.is_own", lambda path: path != cache)
    with pytest.raises(ConfigError, match="another user's: take another --runs-dir"):
        prepare(Data(train=["a.jsonl"], seq_len=8), tokenizer, cache, "train")


@pytest.mark.parametrize("eos", [None, "<|missing|>"])
def test_a_tokenizer_without_an_end_is_refused(tmp_path: Path, tokenizer: str, eos: str | None) -> None:
    Path(tokenizer, "tokenizer_config.json").write_text(json.dumps({"eos_token": eos}))
    with pytest.raises(ConfigError, match="documents need an end"):
        run(tmp_path, tokenizer, texts(9))


def test_cut_files_are_refused(tmp_path: Path) -> None:
    prepared = prepare_texts(tmp_path)
    with (prepared.folder / "pieces.bin").open("r+b") as file:
        file.truncate(100)
    with pytest.raises(ConfigError, match="pieces.bin has 100 bytes, not"):
        Prepared.open(prepared.folder)


def test_chat_loss_counts_what_the_assistant_writes(tmp_path: Path, tokenizer: str) -> None:
    roles = ["system", "user", "assistant", "user", "assistant"]
    contents = ["the run", "goes on", "until it", "is", "done"]
    rows = [{"messages": [{"role": r, "content": c} for r, c in zip(roles, contents, strict=True)]}]
    prepared = run(tmp_path, tokenizer, rows, format="chat")
    assert decode(tokenizer, prepared.tokens[prepared.loss == 1]) == "until it<|end|>\ndone<|end|>\n"
    assert decode(tokenizer, prepared.tokens).startswith("<|system|>\nthe run<|end|>\n<|user|>")


def test_a_template_that_rewrites_earlier_turns_is_refused(tmp_path: Path, tokenizer: str) -> None:
    template = "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    Path(tokenizer, "chat_template.jinja").write_text(template)
    rows = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]
    with pytest.raises(ConfigError, match="the chat template rewrites earlier turns: 1"):
        run(tmp_path, tokenizer, rows, format="chat")


def test_no_file_is_writable_by_others(tmp_path: Path) -> None:
    prepared = prepare_texts(tmp_path)
    assert all(not entry.stat().st_mode & 0o022 for entry in [prepared.folder, *prepared.folder.iterdir()])


# --- breaking off ---------------------------------------------------------------------------------------


class Stopped(Exception):
    pass


def stop_at(call: int) -> Callable[[], None]:
    calls = itertools.count(1)

    def between() -> None:
        if next(calls) == call:
            raise Stopped

    return between


def test_what_was_broken_off_is_continued_and_comes_out_the_same(tmp_path: Path) -> None:
    rows: list[Any] = [*texts(2500), b"not json\n"[:-1], *texts(700)]
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    data = Data(train=[write_rows(tmp_path / "train.jsonl", rows)], seq_len=16, max_rejects=0.5)
    whole = prepare(data, tokenizer, tmp_path / "whole", "train", say=lambda _: None)
    said: list[str] = []
    stops = 0
    for call in range(1, 40):
        try:
            cut = prepare(data, tokenizer, tmp_path / "cut", "train", said.append, stop_at(call))
        except Stopped:
            stops += 1
            continue
        break
    assert stops > 8 and any("goes on after row 2,048" in text for text in said)
    assert any("goes on after row 3,201" in text for text in said)  # broken off while the sources were read again
    assert [path.name for path in (tmp_path / "cut").iterdir()] == [whole.folder.name]
    assert {file.name: file.read_bytes() for file in cut.folder.iterdir()} == {
        file.name: file.read_bytes() for file in whole.folder.iterdir()
    }


def test_a_mistake_leaves_nothing_to_continue(tmp_path: Path) -> None:
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    source = tmp_path / "train.jsonl"
    data = Data(train=[write_rows(source, texts(1500))], seq_len=16)
    calls = itertools.count(1)

    def grow() -> None:
        if next(calls) == 5:  # before the second chunk
            write_rows(source, texts(1600))

    with pytest.raises(ConfigError, match="changed while being read"):
        prepare(data, tokenizer, tmp_path / "cache", "train", lambda _: None, grow)
    assert list((tmp_path / "cache").iterdir()) == []


def test_sources_have_kinds_of_their_own(tmp_path: Path, tokenizer: str) -> None:
    chats = [{"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "a word"}]}] * 40
    plain, talks = write_rows(tmp_path / "plain.jsonl", texts(60)), write_rows(tmp_path / "talks.jsonl", chats)
    named = {"books": Source([plain]), "talks": Source([talks], format="chat")}
    data = Data(train=named, evaluation=[plain], seq_len=16)
    assert list(data.sources) == ["train.books", "train.talks", "evaluation"]
    books, same = (
        prepare(data, tokenizer, tmp_path / "cache", key, lambda _: None) for key in ("train.books", "evaluation")
    )
    assert books.folder == same.folder
    with pytest.raises(ConfigError, match="^data.train: no file is given"):
        prepare(data, tokenizer, tmp_path / "cache", "train")
