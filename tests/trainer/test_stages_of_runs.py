"""Stages of one run on real ranks: no cut changes a bit, what was seen and forgotten is told."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from settings import ConfigError, dump_yaml, merge, read_yaml
from tests.trainer.data.samples import WORDS, write_rows
from tests.trainer.ranks import Run
from trainer.audit import audit
from trainer.checkpoint.format import read_manifest
from trainer.config import cache_folder, read
from trainer.data.batches import Batches
from trainer.data.prepare import prepare
from trainer.data.prepared import Pool, Prepared
from trainer.evaluation import HeldOut
from trainer.layout import BatchLayout
from trainer.prepare import main as prepare_all
from trainer.records.board import Board, tag
from trainer.schema import Evaluation
from trainer.stages import Course

NewRun = Callable[..., Run]
SEAM, STEPS = 8, 16


def chats(count: int) -> list[dict[str, Any]]:
    def chat(i: int) -> list[dict[str, str]]:
        answer = " ".join(WORDS[i * k % 16] for k in range(1, 3 + i % 9))
        return [{"role": "user", "content": f"say {i}"}, {"role": "assistant", "content": answer}]

    return [{"messages": chat(i)} for i in range(count)]


def staged(new_run: NewRun, name: str, **changes: Any) -> Run:
    """Eight steps of texts, eight of chats with texts among them; evaluated every five steps, saved at a stop alone."""
    run = new_run(name)
    books, talks, held_out = (str(run.path / f"{file}.jsonl") for file in ("train", "chats", "evaluation"))
    write_rows(Path(talks), chats(80))
    path = run.path / "config.yaml"
    tree = read_yaml(path)
    tree["data"] = {
        "train": {"books": {"files": [books]}, "chats": {"files": [talks], "format": "chat"}},
        "evaluation": {"chats": {"files": [talks], "format": "chat"}, "books": {"files": [held_out]}},
        "seq_len": 16,
    }
    del tree["train"]["steps"]
    mixture = {"chats": {"from": 0.9, "to": 0.6}, "books": {"from": 0.1, "to": 0.4}}
    own = {"lr": 5e-3, "schedule": "linear", "warmup": 0.25}
    tree["stages"] = [
        {"name": "pretrain", "mixture": {"books": 1}, "steps": SEAM},
        {"name": "instruct", "mixture": mixture, "steps": SEAM, "optim": own},
    ]
    tree["evaluation"] = {"every": 5, "batches": 1, "limits": {"books": 0.5}}
    tree["checkpoint"] = {"every": 1000}
    path.write_text(dump_yaml(merge(tree, changes)))
    return run


def stop_after(run: Run, step: int) -> None:
    assert run.go(2, ["tests.trainer.with_a_stop", str(step), str(run.path / "config.yaml")]) == [75, 75], run.log()
    assert run.events("stop")[-1]["step"] == step and run.checkpoints()[-1].startswith(f"step-{step:08d}")


def evaluations(run: Run) -> dict[int, dict[str, float]]:
    return {event["step"]: event["losses"] for event in run.events("evaluation")}


@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_a_run_cut_before_at_and_after_a_seam_is_the_run_that_nobody_cut(new_run: NewRun, engine: str) -> None:
    whole = staged(new_run, "whole", engine={"kind": engine})
    assert whole.go(2) == [0, 0], whole.log()
    cut = staged(new_run, "cut", engine={"kind": engine})
    for step in (SEAM - 1, SEAM, SEAM + 1):
        stop_after(cut, step)
    assert cut.go(2) == [0, 0], cut.log()
    history = whole.history("loss", "lr", "grad_norm", "hash", "tokens")
    assert cut.history("loss", "lr", "grad_norm", "hash", "tokens") == history and len(history) == STEPS
    assert evaluations(cut) == evaluations(whole) and list(evaluations(cut)) == [0, 5, 10, 15, 16]
    assert cut.done()["sha256"] == whole.done()["sha256"]
    batches = of_one_rank(whole)
    assert whole.history("hash", "tokens") == [
        (step + 1, batches.get(step).hash, batches.get(step).valid_tokens) for step in range(STEPS)
    ]
    # One clock: the first stage's rate has fallen, the second's rises to its own peak two steps after the seam.
    rates = [lr for _, _, lr, *_ in history]
    assert rates[SEAM - 1] < 2e-3 and rates[SEAM : SEAM + 2] == pytest.approx([2.5e-3, 5e-3])
    assert [event["name"] for event in whole.events("stage")] == ["pretrain", "instruct"]
    # What was seen, by the run itself and by those who count again.
    [done], verdict = cut.events("done"), audit(cut.path)
    assert done["seen"] == whole.events("done")[0]["seen"] and sum(done["seen"].values()) == STEPS * 12 * 16
    assert whole.events("stage")[1]["seen"] == {"books": SEAM * 12 * 16, "chats": 0}
    assert verdict.ok and verdict.summary.startswith(
        f"{STEPS} steps, {STEPS * 12} samples in 2 of 2 stages; none skipped"
    )
    second = next(note for note in verdict.notes if note.startswith(f"stage instruct, steps {SEAM + 1}-{STEPS}: "))
    assert "books 24 samples, 384 tokens, " in second and "chats 72 samples, 1,152 tokens, " in second


def test_a_wrong_sample_of_a_mixture_is_named(new_run: NewRun) -> None:
    run = staged(new_run, "run")
    assert run.go(1) == [0], run.log()
    batches = of_one_rank(run)
    samples = batches.samples(12)
    assert any(str(sample).startswith("books:") for sample in samples)
    lines = [json.loads(line) for line in (run.path / "events.jsonl").read_text().splitlines()]
    for event in lines:
        if event["event"] == "step" and event["step"] == 13:
            event["hash"] = batches.get(11).hash
    (run.path / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    [problem] = audit(run.path).samples
    assert problem == "step 13: other samples than planned: it used the samples of step 12"


def of_one_rank(run: Run) -> Batches:
    """Its batches, read as if one rank took them whole."""
    pool = Pool({name: prepared_of(run, name) for name in ("books", "chats")})
    course = Course(read(run.path / "config.yaml"), pool.sizes)
    return Batches(pool, BatchLayout(12, 1, 1), 3, 0, course.ids)


def prepared_of(run: Run, name: str) -> Prepared:
    settings = read(run.path / "config.yaml")
    cache = cache_folder(settings.data, run.path)
    return prepare(settings.data, settings.model.tokenizer_folder, cache, f"train.{name}", lambda _: None)


def test_what_is_forgotten_is_a_curve_and_a_warning(new_run: NewRun) -> None:
    """A model that knows the texts goes on with chats alone."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    base = new_run("base", train={"steps": 40}, evaluation={"every": 0})
    assert base.go(2) == [0, 0], base.log()
    model = {"path": str(base.path / "export"), "config": None}
    chats_only = [{"name": "instruct", "mixture": {"chats": 1}, "steps": 20}]
    limits = {"every": 5, "limits": {"books": 1e-3, "chats": 0.5}, "best": "chats"}
    keep = {"keep_best": 1, "every": 1000}
    changes = {"stages": chats_only, "evaluation": limits, "checkpoint": keep, "tensorboard": True}
    run = staged(new_run, "run", model=model, **changes)
    assert run.go(2) == [0, 0], run.log()
    losses = evaluations(run)
    risen = [step for step in losses if losses[step]["books"] > losses[0]["books"] * 1.001]
    warned = run.events("forgetting")
    assert risen and [event["step"] for event in warned if event["set"] == "books"] == risen
    assert warned[0]["first"] == losses[0]["books"] and warned[0]["limit"] == 1e-3
    assert warned[0]["rise"] == pytest.approx(warned[0]["loss"] / losses[0]["books"] - 1)
    assert f"forgetting: the held-out loss of books after step {risen[0]}, " in run.log()
    assert [event["loss"] for event in run.events("evaluation")] == [one["chats"] for one in losses.values()]
    board = EventAccumulator(str(run.path / "tensorboard")).Reload()
    for name in ("books", "chats"):
        curve = {event.step: event.value for event in board.Scalars(tag(f"evaluation_loss/{name}"))}
        assert curve == pytest.approx({step: one[name] for step, one in losses.items()})
    manifests = [read_manifest(path) for path in (run.path / "checkpoints").iterdir()]
    assert min(losses[step]["chats"] for step in losses if step) in [one.evaluation_loss for one in manifests]
    assert all(one.first_losses == losses[0] for one in manifests)


def test_a_loss_that_is_not_finite_is_above_every_limit() -> None:
    told: list[tuple[str, dict[str, Any]]] = []

    def tell(event: str, step: int, text: str, **values: Any) -> None:
        told.append((event, values))

    held_out = HeldOut(Evaluation(every=5, limits={"a": 9.0, "b": 0.5}, best="b"), {})
    losses = {"a": math.nan, "b": 1.5}
    assert held_out.first(losses, {"b": 1.0}) == {"b": 1.0} and held_out.first(losses, {}) == {"b": 1.5}
    with Board(Path(), 0, active=False) as board:
        held_out.tell(5, losses, {"a": 1.0, "b": 1.0}, tell, board)
    assert told == [
        ("evaluation", {"loss": 1.5, "losses": {"a": None, "b": 1.5}}),
        ("forgetting", {"set": "a", "loss": None, "first": 1.0, "rise": None, "limit": 9.0}),
    ]


def test_a_preparation_prints_each_source_and_each_stage(new_run: NewRun, capsys: pytest.CaptureFixture[str]) -> None:
    run = staged(new_run, "run")
    prepare_all(run.path / "config.yaml")
    said = capsys.readouterr().out.splitlines()
    lines = said[next(place for place, line in enumerate(said) if line.startswith("source ")) :]
    books, talks = (prepared_of(run, name).sequences for name in ("books", "chats"))
    assert lines == [
        f"source books: {books:,} sequences, {books * 16:,} tokens",
        f"source chats: {talks:,} sequences, {talks * 16:,} tokens",
        f"data: {books + talks:,} sequences of 16 tokens; 16 steps",
        "stage pretrain: steps 1 to 8, 1,536 tokens, lr 0.01 cosine",
        f"    books: 100.0%, 1,536 tokens, {96 / books:.2f} epochs",
        "stage instruct: steps 9 to 16, 1,536 tokens, lr 0.005 linear",
        f"    books: 10.0% -> 40.0%, 384 tokens, {24 / books:.2f} epochs",
        f"    chats: 90.0% -> 60.0%, 1,152 tokens, {72 / talks:.2f} epochs",
    ]


def test_a_source_without_a_sequence_is_one_line(new_run: NewRun) -> None:
    run = staged(new_run, "run")
    (run.path / "train.jsonl").write_text("")
    with pytest.raises(ConfigError, match=r"^data.train.books: 0 tokens in 0 rows: no token has a target"):
        prepare_all(run.path / "config.yaml")
