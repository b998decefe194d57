"""New tokens: one id each, rows that start where their pieces were, the same on every engine."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from settings import ConfigError, convert
from tests.trainer.data.samples import texts, write_rows, write_tokenizer
from tests.trainer.ranks import Run
from tests.trainer.test_lora import DDP
from tests.trainer.test_weights import SMALL, held
from trainer import vocabulary
from trainer.config import differences, exact_part, resolve
from trainer.data.encode import load_tokenizer
from trainer.model import new_tokens, weights
from trainer.prepare import check_fork
from trainer.prepare import main as prepare
from trainer.shape import Model

NewRun = Callable[..., Run]
NEW = ["10-K", "kg", " CO2", "limits and failures"]
TIED = {"tie_word_embeddings": True}
EXPERTS = {"model_type": "mixtral", "num_local_experts": 4}
"""Its folder is read by transformers, whole."""


def base(folder: Path, rows: int, **shape: Any) -> Model:
    """A folder with a model that has so many rows, and a tokenizer; with the new tokens."""
    folder.mkdir(exist_ok=True)
    model: Any = weights.build(Model(config={"model_type": "llama", **SMALL, "vocab_size": rows, **shape}), seed=3)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return Model(path=str(folder), new_tokens=NEW, attention="sdpa")


def size(folder: Path) -> int:
    write_tokenizer(folder)
    return load_tokenizer(folder).get_vocab_size()


@pytest.mark.parametrize("shape", [{}, TIED, EXPERTS], ids=["untied", "tied", "experts"])
@pytest.mark.parametrize("spare", [0, 2, 100])
def test_rows(spare: int, shape: dict[str, Any], tmp_path: Path) -> None:
    """`spare`: rows of the model beyond its tokenizer."""
    old = size(tmp_path)
    settings = base(tmp_path, old + spare, **shape)
    grown = new_tokens.grown(settings)
    assert list(grown.pieces) == list(range(old, old + len(NEW)))
    assert all(len(pieces) > 1 and max(pieces) < old for pieces in grown.pieces.values())

    before: Any = weights.build(Model(path=str(tmp_path), attention="sdpa"), seed=0)
    after: Any = weights.build(settings, seed=0)
    there = old + spare
    rows = there if spare >= len(NEW) else -(-(old + len(NEW)) // 64) * 64
    assert after.config.vocab_size == after.get_input_embeddings().num_embeddings == rows
    for get in ("get_input_embeddings", "get_output_embeddings"):
        was, now = getattr(before, get)().weight, getattr(after, get)().weight
        kept = [row for row in range(there) if row not in grown.pieces]
        assert torch.equal(now[kept], was[kept])
        for row, pieces in grown.pieces.items():
            assert torch.equal(now[row], was[pieces].mean(0))
        assert not now[max(there, old + len(NEW)) :].any(), "rows of no token"
    assert (after.get_input_embeddings().weight is after.get_output_embeddings().weight) == (shape is TIED)

    tokens = torch.arange(5, 37)[None]
    with torch.no_grad():
        assert torch.equal(after(tokens).logits[..., :old], before(tokens).logits[..., :old])
    # What a rank of any engine reads.
    parts = held(after)
    weights.fill(parts.values(), settings, seed=0)
    for name, parameter in after.named_parameters():
        part = parts[name]
        assert torch.equal(part.tensors["weights"], parameter.detach().view(-1)[part.start : part.stop]), name  # type: ignore


def test_a_head_with_a_bias(tmp_path: Path) -> None:
    shape = {"model_type": "phi", "num_key_value_heads": 4, "vocab_size": size(tmp_path)}
    model: Any = weights.build(Model(config={**SMALL, **shape}), seed=3)
    torch.nn.init.normal_(model.lm_head.bias)
    model.save_pretrained(tmp_path)
    settings = Model(path=str(tmp_path), new_tokens=NEW, attention="sdpa")
    whole: Any = weights.build(settings, seed=0)
    for row, pieces in new_tokens.grown(settings).pieces.items():
        assert torch.equal(whole.lm_head.bias[row], model.lm_head.bias[pieces].mean())
    parts = held(whole)
    weights.fill(parts.values(), settings, seed=0)
    part = parts["lm_head.bias"]
    assert torch.equal(part.tensors["weights"], whole.lm_head.bias[part.start : part.stop])  # type: ignore[arg-type]


# --- what they are good for -----------------------------------------------------------------------------


def codes(count: int) -> list[str]:
    draw = random.Random(1)
    return [f"{draw.choice('ABCDEFGH')}{draw.randint(10, 99)}-{draw.choice('KQSX')}{number}" for number in range(count)]


def documents(count: int, words: list[str], seed: int) -> list[str]:
    """What stands behind a code follows from its letters, as it does in a field's own language."""
    draw = random.Random(seed)
    said = {"K": "the run goes on", "Q": "through limits", "S": "until it is done", "X": "every sample counts"}
    out = []
    for _ in range(count):
        chosen = [draw.choice(words) for _ in range(6)]
        out.append(" ".join(f"{word} {said[word.split('-')[1][0]]}" for word in chosen))
    return out


def loss(model: Any, tokenizer: Any, lines: list[str]) -> torch.Tensor:
    rows = [tokenizer.encode(line).ids for line in lines]
    width = max(map(len, rows))
    tokens = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    labels = torch.tensor([row + [-100] * (width - len(row)) for row in rows])
    return cross_entropy(model(tokens).logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def train(model: Any, tokenizer: Any, lines: list[str], steps: int) -> float:
    """AdamW, eight documents a step. Returns the loss on the last fourth of the documents, which it does not see."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    seen = len(lines) * 3 // 4
    for step in range(steps):
        optimizer.zero_grad()
        loss(model, tokenizer, lines[step * 8 % seen :][:8]).backward()
        optimizer.step()
    with torch.no_grad():
        return loss(model, tokenizer, lines[seen:]).item()


@pytest.mark.parametrize(
    "shape", [pytest.param({}, marks=pytest.mark.nightly, id="untied"), pytest.param(TIED, id="tied")]
)
def test_200_tokens_start_better_than_by_transformers(shape: dict[str, Any], tmp_path: Path) -> None:
    words = codes(200)
    base(tmp_path, size(tmp_path), **shape, hidden_size=64, intermediate_size=128)
    old = load_tokenizer(tmp_path)
    trained: Any = weights.build(Model(path=str(tmp_path), attention="sdpa"), seed=0)
    train(trained, old, documents(800, words, seed=2), 100)
    trained.save_pretrained(tmp_path)

    settings = Model(path=str(tmp_path), new_tokens=words, attention="sdpa")
    grown = new_tokens.grown(settings)
    ours: Any = weights.build(settings, seed=0)
    line = torch.tensor([old.encode("the run goes on through limits").ids])
    with torch.no_grad():
        # A wider product may be shared out among threads, and summed, in another way.
        torch.testing.assert_close(ours(line).logits[..., : grown.size], trained(line).logits[..., : grown.size])
    for of in ("get_input_embeddings", "get_output_embeddings"):
        rows, before = (getattr(model, of)().weight[: grown.size] for model in (ours, trained))
        assert torch.equal(rows, before)
    lines = documents(400, words, seed=3)
    after = {"pieces": train(ours, grown.tokenizer, lines, 50)}
    for name, mean in (("mean and covariance", True), ("drawn", False)):
        theirs: Any = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="sdpa")
        torch.manual_seed(0)
        theirs.resize_token_embeddings(ours.config.vocab_size, mean_resizing=mean)
        after[name] = train(theirs, grown.tokenizer, lines, 50)
    print(f"held-out loss after 50 steps: {after}")
    assert min(after, key=after.__getitem__) == "pieces"


# --- the tokenizer --------------------------------------------------------------------------------------


def test_the_old_texts_keep_their_tokens(tmp_path: Path) -> None:
    settings = base(tmp_path, 600)
    old, before = load_tokenizer(tmp_path), (tmp_path / "tokenizer.json").read_bytes()
    new_tokens.write(settings, tmp_path / "grown")
    assert (tmp_path / "tokenizer.json").read_bytes() == before
    new = load_tokenizer(tmp_path / "grown")
    ids = {text: new.token_to_id(text) for text in NEW}
    for text in ("the run goes on", "background, kgs, a10-Kb", "10 - K"):
        assert new.encode(text).ids == old.encode(text).ids, text
    assert new.encode("a 10-K of 3 kg").ids.count(ids["10-K"]) == 1
    assert ids["kg"] in new.encode("3 kg").ids and ids[" CO2"] in new.encode("of CO2.").ids
    for text in ("a 10-K of 3 kg CO2", "limits and failures"):
        assert new.decode(new.encode(text).ids) == text


@pytest.mark.parametrize("kind", ["PreTrainedTokenizerFast", "Qwen2Tokenizer", "GPT2Tokenizer"])
def test_transformers_reads_it(kind: str, tmp_path: Path) -> None:
    settings = base(tmp_path, 600)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    decoder = {"0": {"content": config["eos_token"], "special": True, "normalized": False, "lstrip": False}}
    decoder["0"] |= {"rstrip": False, "single_word": False}
    config = {**config, "tokenizer_class": kind, "added_tokens_decoder": decoder}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    new_tokens.write(settings, tmp_path / "grown")
    new, theirs = load_tokenizer(tmp_path / "grown"), AutoTokenizer.from_pretrained(tmp_path / "grown")
    for text in (*NEW, "a 10-K of 3 kg CO2", "background"):
        assert theirs.encode(text, add_special_tokens=False) == new.encode(text, add_special_tokens=False).ids
    assert all(len(theirs.encode(text, add_special_tokens=False)) == 1 for text in NEW)


MISTAKES: list[tuple[list[str], str]] = [
    ([], "model.new_tokens is empty: leave it out"),
    (["10-K", ""], "model.new_tokens: number 2 is empty: take it out"),
    (["10-K", "kg", "10-K"], "model.new_tokens: '10-K' stands there twice: keep one"),
]


def recipe(model: dict[str, Any], **more: Any) -> dict[str, Any]:
    data, train = {"train": ["x"], "seq_len": 8}, {"steps": 1, "global_batch_size": 1}
    return {"name": "run", "model": {"path": "m", **model}, "data": data, "train": train, **more}


@pytest.mark.parametrize(("texts", "line"), MISTAKES)
def test_a_list_that_cannot_be(texts: list[str], line: str) -> None:
    with pytest.raises(ConfigError) as error:
        resolve(recipe({"new_tokens": texts}), "r.yaml")
    assert str(error.value) == f"r.yaml: {line}"


def test_lora_must_train_their_rows() -> None:
    with pytest.raises(ConfigError, match=r"would stay as they start: lora\.tokens=new trains them$"):
        resolve(recipe({"new_tokens": NEW}, lora={}), "r.yaml")
    with pytest.raises(ConfigError, match=r"lora\.tokens=new needs model\.new_tokens$"):
        resolve(recipe({}, lora={"tokens": "new"}), "r.yaml")
    assert resolve(recipe({"new_tokens": NEW}, lora={"tokens": "new"}), "r.yaml").lora


def test_what_is_a_token_already(tmp_path: Path) -> None:
    base(tmp_path, 600)
    known = load_tokenizer(tmp_path).encode(" run").ids
    assert len(known) == 1
    for text in (" run", "<|end|>", "a"):
        with pytest.raises(ConfigError, match=r"is one token already \(\d+\): take it out$"):
            new_tokens.grown(Model(path=str(tmp_path), new_tokens=["kg", text]))


def test_other_tokens_are_another_run(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = (exact_part(resolve(recipe({"new_tokens": texts}), "r.yaml")) for texts in (NEW, NEW[:2]))
    assert [key for key, _, _ in differences(one, other)] == ["model.new_tokens"]
    theirs = SimpleNamespace(step=9, config={"model": {"config": None}})  # of before there were new tokens
    monkeypatch.setattr("trainer.prepare.read_manifest", lambda _: theirs)
    with pytest.raises(ConfigError, match=r"^--fork: the checkpoint has other model\.new_tokens: export its run, "):
        check_fork(resolve(recipe({"new_tokens": NEW}), "r.yaml"), Path("step-9"), 10)
    check_fork(resolve(recipe({}), "r.yaml"), Path("step-9"), 10)


def test_ids_with_a_gap(tmp_path: Path) -> None:
    base(tmp_path, 600)
    values = json.loads((tmp_path / "tokenizer.json").read_text())
    last = max(values["model"]["vocab"], key=values["model"]["vocab"].get)
    values["model"]["vocab"][last] += 2
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match="the tokenizer's ids have gaps, and it would use one twice"):
        new_tokens.grown(Model(path=str(tmp_path), new_tokens=NEW))


def test_a_model_that_is_too_small_for_its_own_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tokens, the model's vocab_size is 300$"):
        weights.build(base(tmp_path, 300), seed=0)


# --- runs -----------------------------------------------------------------------------------------------

FSDP = {"kind": "fsdp"}
ZERO3 = {"kind": "deepspeed", "config": {"zero_optimization": {"stage": 3}}}
CHANGES: dict[str, Any] = {
    "train": {"steps": 12},
    "optim": {"lr": 1e-3},
    "evaluation": {"every": 6, "batches": 2},
    "checkpoint": {"every": 100},
}


def run_of(new_run: NewRun, name: str, folder: Path, engine: dict[str, Any], **more: Any) -> Run:
    changes = {**CHANGES, "engine": engine, **more}
    rows = write_rows(folder / "rows.jsonl", [{"text": f"{one['text']} a 10-K of 3 kg CO2"} for one in texts(120)])
    model = {"path": str(folder), "tokenizer": None, "config": None, "new_tokens": NEW}
    return new_run(name, model=model, **changes, data={"train": [rows], "evaluation": [rows]})


def test_engines_agree_and_a_cut_run_goes_on(new_run: NewRun, tmp_path: Path) -> None:
    base(tmp_path / "base", size(tmp_path), **TIED)
    ddp = run_of(new_run, "ddp", tmp_path / "base", DDP)
    prepare(ddp.path / "config.yaml")  # as on a login node
    assert ddp.go(2) == [0, 0], ddp.log()
    cut = run_of(new_run, "cut", tmp_path / "base", DDP)
    cut.stop_after(2, 5)
    assert cut.go(2) == [0, 0], cut.log()
    assert cut.done()["sha256"] == ddp.done()["sha256"]
    for name, engine in (("fsdp", FSDP), ("zero", ZERO3)):
        other = run_of(new_run, name, tmp_path / "base", engine)
        assert other.go(2) == [0, 0], other.log()
        pairs = zip(ddp.history("loss", "hash"), other.history("loss", "hash"), strict=True)
        assert all(ours[2] == theirs[2] for ours, theirs in pairs)
        losses = [[step[1] for step in run.history("loss")] for run in (ddp, other)]
        assert losses[1] == pytest.approx(losses[0], rel=1e-5), name

    export = ddp.path / "export"
    tokenizer, model = AutoTokenizer.from_pretrained(export), AutoModelForCausalLM.from_pretrained(export)
    assert not list(export.glob("vocab*")) and (export / "tokenizer_config.json").is_file()
    assert all(len(tokenizer.encode(text)) == 1 for text in NEW)
    ids = {text: tokenizer.encode(text)[0] for text in NEW}
    assert model.config.vocab_size % 64 == 0 and max(ids.values()) < model.config.vocab_size
    first: Any = weights.build(Model(path=str(tmp_path / "base"), new_tokens=NEW), seed=0)
    moved = (model.get_input_embeddings().weight - first.get_input_embeddings().weight).abs().sum(1)
    assert all(moved[ids[text]] > 0 for text in ("10-K", "kg", " CO2")), "they were in the data, and trained"


@pytest.mark.parametrize("quantize", [None, "nf4"])
def test_lora_trains_the_new_rows(quantize: str | None, new_run: NewRun, tmp_path: Path) -> None:
    base(tmp_path / "base", size(tmp_path), **TIED)
    precision = "master32" if quantize else "fp32"
    train = {"steps": 12, "precision": precision}
    lora = {"r": 4, "tokens": "new", "quantize": quantize}
    run = run_of(new_run, "lora", tmp_path / "base", DDP, lora=lora, train=train)
    assert run.go(1) == [0], run.log()
    model: Any = AutoModelForCausalLM.from_pretrained(run.path / "export")
    settings = Model(path=str(tmp_path / "base"), new_tokens=NEW)
    first: Any = weights.build(settings, seed=0, dtype=model.dtype)
    moved = (model.get_input_embeddings().weight - first.get_input_embeddings().weight).abs().sum(1)
    new = new_tokens.grown(settings).pieces
    assert moved[min(new)] > 0 and not moved[: min(new)].any()


# --- suggestions ----------------------------------------------------------------------------------------


def test_what_saves_most_is_suggested(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base(tmp_path / "base", 600)
    lines = [{"text": f"the run (H2SO4) goes on, 10-K405 and 10-K405; through {n} limits"} for n in range(50)]
    lines += [{"text": "every rare-1"}, {"text": "every rare-2"}]
    made = {"path": "base"}
    recipe_file = tmp_path / "sft.yaml"
    tree = recipe(made, data={"train": [write_rows(tmp_path / "rows.jsonl", lines)], "seq_len": 8})
    recipe_file.write_text(json.dumps(tree))
    out = tmp_path / "found.txt"
    assert vocabulary.main([str(recipe_file), "--suggest", "3", "--out", str(out)]) == 0
    found = new_tokens.read_texts(out)
    assert found[0] == " 10-K405" and "H2SO4" in found and not any("rare" in text for text in found)
    told = capsys.readouterr().out
    assert "52 documents: " in told and "% fewer" in told and "2.000" not in told.splitlines()[0]
    settings = convert({"path": str(tmp_path / "base"), "new_tokens": found}, Model, "test")
    assert len(new_tokens.grown(settings).tokenizer.encode("on, 10-K405 and").ids) < 6
    assert vocabulary.main([str(recipe_file), "model.path=nowhere"]) == 78
    capsys.readouterr()
    for words, line in ((["--suggest", "0"], "--suggest 0: a number of tokens, from 1 on"), (["--out", "no/x"], "no/")):
        assert vocabulary.main([str(recipe_file), *words]) == 78
        assert capsys.readouterr().err.startswith(f"outlast: {line}")
