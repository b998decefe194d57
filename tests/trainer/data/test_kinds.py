"""Kinds of rows: completions, chats under other names and with tools, what counts of them, and what is too long."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from settings import ConfigError
from tests.trainer.data.samples import texts, write_rows, write_tokenizer
from trainer.data import kinds
from trainer.data.encode import Encoded, encoder
from trainer.data.prepare import prepare
from trainer.data.prepared import Prepared
from trainer.data.values import Chat, Completion, Form
from trainer.sources import KINDS, Data, Kind, Source

END = "<|endoftext|>"


@pytest.fixture
def tokenizer(tmp_path: Path) -> str:
    return write_tokenizer(tmp_path / "tokenizer")


def run(tmp_path: Path, tokenizer: str, rows: list[Any], **changes: Any) -> Prepared:
    file = write_rows(tmp_path / "rows.jsonl", [*rows, *changes.pop("beside", [])])
    data = Data(train=[file], **{"seq_len": 4, "max_rejects": 1.0, **changes})
    return prepare(data, tokenizer, tmp_path / "cache", "train", say=lambda _: None)


def words(prepared: Prepared, tokenizer: str) -> tuple[str, str]:
    """All of it, and what of it counts."""
    decode = Tokenizer.from_file(f"{tokenizer}/tokenizer.json").decode
    ids = prepared.tokens
    whole, counts = ids.tolist(), ids[prepared.loss == 1].tolist()
    return decode(whole, skip_special_tokens=False), decode(counts, skip_special_tokens=False)


# --- completions ----------------------------------------------------------------------------------------


def test_of_a_prompt_with_its_completion_the_completion_counts_with_its_end(tmp_path: Path, tokenizer: str) -> None:
    rows = [{"prompt": "the run", "completion": " goes on"}, {"prompt": "", "completion": "until done"}]
    whole, counts = words(run(tmp_path, tokenizer, rows, format="completion"), tokenizer)
    assert whole == f"the run goes on{END}until done{END}"
    assert counts.startswith(f" goes on{END}") and counts.endswith(f"done{END}")


def test_a_completion_in_the_middle_of_a_word_counts_from_the_token_on_that_it_changes(tokenizer: str) -> None:
    encode, _ = encoder(Path(tokenizer), "completion")
    [document] = encode([Completion("the fail", "ures and limits")])
    assert isinstance(document, Encoded)
    plain = Tokenizer.from_file(f"{tokenizer}/tokenizer.json").encode("the failures and limits").ids
    assert list(document.ids[:-1]) == plain
    assert 0 < sum(document.loss) < len(document.ids) and document.loss[-1] == 1


def test_completions_that_cannot_be_used(tmp_path: Path, tokenizer: str) -> None:
    good = {"prompt": "the run", "completion": " goes on until it is done"}
    rows = [good, {**good, "completion": " "}, {**good, "prompt": None}, {"prompt": "a"}, {**good, "completion": ["a"]}]
    assert run(tmp_path, tokenizer, rows, format="completion").manifest.rejects == {
        "no completion tokens": 1,
        "'prompt' is not a text": 1,
        "no column 'completion'": 1,
        "'completion' is not a text": 1,
    }


# --- other names ----------------------------------------------------------------------------------------


def test_columns_of_other_names(tmp_path: Path, tokenizer: str) -> None:
    pair = {"question": "the run", "answer": " goes on"}
    column = {"prompt": "question", "completion": "answer"}
    mapped = run(tmp_path, tokenizer, [pair], format="completion", column=column)
    plain = [{"prompt": "the run", "completion": " goes on"}]
    assert mapped.tokens.tolist() == run(tmp_path, tokenizer, plain, format="completion").tokens.tolist()
    assert run(tmp_path, tokenizer, [{"body": "the run goes on"}], column={"text": "body"}).manifest.documents == 1


def test_chats_of_other_names(tmp_path: Path, tokenizer: str) -> None:
    spoken = [("system", "be short"), ("human", "the run"), ("gpt", "goes on")]
    theirs = [{"conversations": [{"from": who, "value": said} for who, said in spoken]}]
    names = {"messages": "conversations", "role": "from", "content": "value", "user": "human", "assistant": "gpt"}
    roles = ("system", "user", "assistant")
    ours = [{"messages": [{"role": r, "content": s} for r, (_, s) in zip(roles, spoken, strict=True)]}]
    mapped = run(tmp_path, tokenizer, theirs, format="chat", column=names)
    assert mapped.tokens.tolist() == run(tmp_path, tokenizer, ours, format="chat").tokens.tolist()
    assert run(tmp_path, tokenizer, ours, format="chat", column=names, beside=theirs).manifest.rejects == {
        "no column 'conversations'": 1
    }
    del names["assistant"]
    with pytest.raises(ConfigError, match="unknown role: 1"):
        run(tmp_path, tokenizer, theirs, format="chat", column=names, max_rejects=0.0)


@pytest.mark.parametrize(
    ("kind", "column", "line"),
    [
        ("completion", "text", "completion needs 2: data.column={prompt: ..., completion: ...}"),
        ("chat", {"rolle": "from"}, "data.column: chat has no rolle: what can be mapped: messages, tools, role, "),
        ("text", {"prompt": "a"}, "data.column: text has no prompt: what can be mapped: text"),
    ],
)
def test_a_mapping_of_what_the_kind_does_not_have(kind: Any, column: Any, line: str) -> None:
    with pytest.raises(ConfigError) as error:
        _ = Source(["a.jsonl"], kind, column).columns
    assert line in str(error.value)


def test_a_further_kind_is_a_module_and_a_line(tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("trainer.data.kinds.quiz")
    module.value = lambda row, names: Completion(f"{row[names['question']]}\n", row[names["answer"]])  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(KINDS, "quiz", Kind("completion", ("question", "answer")))
    rows = [{"q": "What is it?", "answer": "A garden."}]
    same = [{"prompt": "What is it?\n", "completion": "A garden."}]
    quiz = run(tmp_path, tokenizer, rows, format="quiz", column={"question": "q"})
    assert quiz.tokens.tolist() == run(tmp_path, tokenizer, same, format="completion").tokens.tolist()
    assert quiz.manifest.rejects == {}


def test_every_kind_has_its_module() -> None:
    assert all(callable(kinds.reader(kind)) for kind in KINDS)
    assert all(name in KINDS for name in get_args(Form))  # a held-out file is read as what is asked for


# --- chats ----------------------------------------------------------------------------------------------

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content + '<|im_end|>' }}{% endgeneration %}{% else %}{{ m.content + '<|im_end|>' }}{% endif %}{{ '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
HEADERS = (
    "{{ bos_token if bos_token else '' }}{%- for m in messages %}<|head|>{{ m['role'] }}<|/head|>\n\n"
    "{%- if m['role'] == 'assistant' %}{%- generation %}{{ m['content'] | trim }}<|eot|>{%- endgeneration %}"
    "{%- else %}{{ m['content'] | trim }}<|eot|>{%- endif %}{%- endfor %}"
)
TURNS = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% elif m.role == 'assistant' -%}"
    "{%- generation -%} {{ m.content }}</s> {%- endgeneration -%}{% else %}<<{{ m.content }}>>{% endif %}{% endfor %}"
)
PARTS = (
    "{% for m in messages %}{{ m.role }}: {% if m.role == 'assistant' %}{% generation %}{% if loop.last %}(last) "
    "{% endif %}{{ m.content }}{% endgeneration %}{% generation %}|end|{% endgeneration %}{% else %}{{ m.content }}"
    "{% endif %}\n{% endfor %}"
)
TOOLS = (
    "{% if tools %}tools: {{ tools | tojson }}\n{% endif %}{% for m in messages %}<{{ m.role }}>"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% for call in m.tool_calls or [] %}"
    "{{ call.function | tojson }}{% endfor %}{% endgeneration %}{% else %}{{ m.content }}{% endif %}</{{ m.role }}>\n"
    "{% endfor %}"
)
MARKED = [CHATML, HEADERS, TURNS, PARTS, TOOLS]
TOOL = {"type": "function", "function": {"name": "count", "parameters": {"type": "object", "properties": {}}}}
CALL = {"type": "function", "function": {"name": "count", "arguments": {"of": "runs"}}}
LINES = ["the run goes on", "until it is done", "Ünïcödé 文 🙂", " limits \n and failures ", "x"]
CHATS = [
    [{"role": role, "content": LINES[(k + i) % 5]} for i, role in enumerate(roles)]
    for k, roles in enumerate([("user", "assistant"), ("system", "user", "assistant", "user", "assistant"), ("assistant",)])
]  # fmt: skip


@pytest.mark.parametrize("template", MARKED, ids=["chatml", "headers", "turns", "parts", "tools"])
def test_masks_are_those_of_transformers(tokenizer: str, template: str) -> None:
    Path(tokenizer, "chat_template.jinja").write_text(template)
    called = [*CHATS[0], {"role": "assistant", "content": "", "tool_calls": [CALL]}, {"role": "tool", "content": "3"}]
    chats = [Chat(chat, tools) for chat in [*CHATS, called] for tools in (None, [TOOL])]
    encode, _ = encoder(Path(tokenizer), "chat")
    theirs = AutoTokenizer.from_pretrained(tokenizer, local_files_only=True)
    for chat, found in zip(chats, encode(chats), strict=True):
        wanted = theirs.apply_chat_template(
            chat.messages, tools=chat.tools, return_dict=True, return_assistant_tokens_mask=True
        )
        assert isinstance(found, Encoded)
        assert list(found.ids) == wanted["input_ids"]
        masks = np.array(wanted["assistant_masks"])
        masks[0] = 0  # nothing predicts it
        assert list(found.loss) == masks.tolist() and any(found.loss)


def test_a_marked_template_may_rewrite_earlier_turns(tmp_path: Path, tokenizer: str) -> None:
    """As those do that leave out what was thought in them."""
    Path(tokenizer, "chat_template.jinja").write_text(PARTS)
    rows = [{"messages": CHATS[1]}]
    _, counts = words(run(tmp_path, tokenizer, rows, format="chat"), tokenizer)
    assert counts == f"{LINES[3]}|end|(last) {LINES[0]}|end|"


@pytest.mark.parametrize("marks", [True, False])
def test_many_chats_come_out_as_one_by_one(
    tmp_path: Path, tokenizer: str, marks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches are encoded by two threads, and in pieces."""
    monkeypatch.setattr("trainer.data.encode._PIECE", 5000)
    if marks:
        Path(tokenizer, "chat_template.jinja").write_text(HEADERS)
    chats = [[*CHATS[i % 3], {"role": "assistant", "content": f"word {i}"}] for i in range(5000)]
    prepared = run(tmp_path, tokenizer, [{"messages": chat} for chat in chats], format="chat", max_rejects=0.0)
    encode, dtype = encoder(Path(tokenizer), "chat")
    alone = [encode([Chat(chat, None)])[0] for chat in chats]
    assert prepared.tokens.tolist() == [i for one in alone if isinstance(one, Encoded) for i in one.ids]
    assert prepared.loss.tolist() == [i for one in alone if isinstance(one, Encoded) for i in one.loss]


def test_a_template_that_writes_the_date_gives_the_same_tokens_on_any_day(tokenizer: str) -> None:
    """As Llama 3.2's: prepared anew a month later, the data would be other tokens under the same fingerprint."""
    text = "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% endif %} " + CHATML
    Path(tokenizer, "chat_template.jinja").write_text(text)
    encode, _ = encoder(Path(tokenizer), "chat")
    Path(tokenizer, "chat_template.jinja").write_text("26 Jul 2024 " + CHATML)
    fixed, _ = encoder(Path(tokenizer), "chat")
    assert encode([Chat(CHATS[0], None)]) == fixed([Chat(CHATS[0], None)])


def test_tools_go_to_the_template(tmp_path: Path, tokenizer: str) -> None:
    Path(tokenizer, "chat_template.jinja").write_text(
        TOOLS.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    )
    called = [*CHATS[0], {"role": "assistant", "content": None, "tool_calls": [CALL]}]
    rows: list[Any] = [{"messages": called, "tools": tools} for tools in ([TOOL], json.dumps([TOOL]))]
    prepared = run(tmp_path, tokenizer, rows, format="chat")
    whole, counts = words(prepared, tokenizer)
    assert whole.count('"name": "count", "parameters"') == 2 and counts.count('{"name": "count", "arguments"') == 2
    assert (
        prepared.tokens[: len(prepared.tokens) // 2].tolist() == prepared.tokens[len(prepared.tokens) // 2 :].tolist()
    )
    bad = [{"messages": CHATS[0], "tools": tools} for tools in ("{", "3", [1], 5)]
    assert run(tmp_path, tokenizer, bad, format="chat", beside=rows).manifest.rejects == {
        "the tools are not a list of JSON schemas": 3,
        "the tools are not valid JSON": 1,
    }


# --- length ---------------------------------------------------------------------------------------------

LONG = [{"text": "the run goes on"}, {"text": "until it is done and every sample counts " * 5}, {"text": "the run"}]


def test_what_is_too_long(tmp_path: Path, tokenizer: str) -> None:
    split = run(tmp_path, tokenizer, LONG, max_tokens=20)
    cut = run(tmp_path, tokenizer, LONG, max_tokens=20, too_long="truncate")
    refused = run(tmp_path, tokenizer, LONG, max_tokens=20, too_long="reject")
    assert [one.manifest.documents for one in (split, cut, refused)] == [3, 3, 2]
    assert [one.manifest.too_long for one in (split, cut, refused)] == [1, 1, 0]
    assert refused.manifest.rejects == {"too long: more than 20 tokens": 1}
    lengths = np.diff([*cut.starts, cut.manifest.tokens]).tolist()
    assert lengths[1] == 20 and np.diff([*split.starts, split.manifest.tokens])[1] > 20
    begin = int(cut.starts[1])
    assert cut.tokens[begin : begin + 20].tolist() == split.tokens[begin : begin + 20].tolist()


def test_a_cut_that_leaves_nothing_to_learn(tmp_path: Path, tokenizer: str) -> None:
    rows = [{"prompt": "the run goes on " * 9, "completion": "done"}, {"prompt": "the run", "completion": " goes on"}]
    cut = run(tmp_path, tokenizer, rows, format="completion", max_tokens=8, too_long="truncate")
    assert cut.manifest.rejects == {"no completion tokens": 1} and cut.manifest.too_long == 0


# --- rows in = rows kept + rows rejected ----------------------------------------------------------------

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5) | st.sampled_from(["system", "user", "assistant"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.fixed_dictionaries({}, optional={k: inner for k in ("text", "messages", "role", "content", "prompt", "completion", "tools", "tool_calls")})
    ),
    max_leaves=12,
)  # fmt: skip
LINE = st.binary(max_size=30) | VALUES.map(lambda value: json.dumps(value).encode())


@pytest.mark.parametrize("kind", ["text", "chat", "completion"])
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(lines=st.lists(LINE, max_size=12), too_long=st.sampled_from(["split", "truncate", "reject"]))
def test_every_row_is_kept_or_rejected(
    tmp_path_factory: pytest.TempPathFactory, kind: Any, lines: list[bytes], too_long: Any
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    good = {**texts(3)[2], "prompt": "the run", "completion": " goes on and on", "messages": CHATS[0]}
    content = b"\n".join([*lines, *[json.dumps(good).encode()] * 9])
    rows = [number for number, line in enumerate(content.split(b"\n"), 1) if line.strip()]
    (folder / "a.jsonl").write_bytes(content)
    data = Data([str(folder / "a.jsonl")], seq_len=4, format=kind, max_rejects=1.0, too_long=too_long, max_tokens=40)
    tokenizer = write_tokenizer(folder / "tokenizer")
    prepared = prepare(data, tokenizer, folder / "cache", "train", say=lambda _: None)
    manifest = prepared.manifest
    kept = [json.loads(line) for line in (prepared.folder / "rejects.jsonl").read_text().splitlines()]
    assert manifest.rows == len(rows) == manifest.documents + len(kept)
    assert sum(manifest.rejects.values()) == len(kept)
    assert len({line["line"] for line in kept}) == len(kept) and {line["line"] for line in kept} <= set(rows)
