"""Stages of one run: what they are made of, what a recipe may not say, and that no cut changes a bit."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from settings import ConfigError, dump_yaml, merge, read_yaml, to_plain
from tests.trainer.data.samples import WORDS, texts, write_rows, write_tokenizer
from tests.trainer.ranks import ROOT, Run
from trainer import recipe, schedule
from trainer.audit import audit
from trainer.board import Board
from trainer.checkpoint.format import read_manifest
from trainer.config import cache_folder, exact_part, read, resolve
from trainer.data.batches import Batches
from trainer.data.order import batch_indices
from trainer.data.prepare import prepare
from trainer.data.prepared import Pool, Prepared
from trainer.evaluation import HeldOut
from trainer.layout import BatchLayout
from trainer.prepare import main as prepare_all
from trainer.schema import Evaluation, Optim, TrainConfig
from trainer.sources import Data, Source
from trainer.stages import Course

NewRun = Callable[..., Run]
SIZES = {"books": 500, "chats": 90}


def settled(**changes: Any) -> TrainConfig:
    base = {
        "name": "x",
        "model": {"path": "weights"},
        "data": {
            "train": {"books": {"files": ["b"]}, "chats": {"files": ["c"], "format": "chat"}},
            "evaluation": {"domain": {"files": ["d"]}, "general": {"files": ["g"]}},
            "seq_len": 8,
        },
        "train": {"global_batch_size": 12},
        "stages": [stage()],
    }
    return resolve(merge(base, changes), "x.yaml")


def stage(name: str = "one", **changes: Any) -> dict[str, Any]:
    length = {} if {"epochs", "tokens"} & set(changes) else {"steps": 10}
    return {"name": name, **length, **changes}


# --- the course of a run --------------------------------------------------------------------------------


def test_a_run_without_stages_has_the_batches_and_the_rate_that_it_had() -> None:
    settings = settled(stages=None, train={"steps": 30}, data={"train": ["a"]})
    course = Course(settings, {"": 77})
    assert course.steps == 30
    for step in range(30):
        assert (course.ids(step) == batch_indices(step, 12, 77, 0)).all()
        assert course.learning_rate(step) == schedule.learning_rate(step, 30, settings.optim)
    assert course.tokens(30) == {} and course.told(30) == ""
    twice = Course(settled(stages=[stage(), stage("again")], data={"train": ["a"]}), {"": 77})
    assert (twice.ids(9) == course.ids(9)).all()  # a list of files may have stages too
    assert (twice.ids(10) != course.ids(0)).any()


def test_a_stage_is_as_long_as_it_says() -> None:
    both = {"books": 3, "chats": 1}
    stages = [
        stage("steps"),
        stage("tokens", tokens=5.75e2),  # a part of a batch is left out
        stage("all", epochs=2),
        stage("mixed", mixture=both, epochs=1.5),  # of the books, which weigh most: 500 x 1.5 x 4 / 3 sequences
        stage("last", mixture={"chats": 1}, epochs=1),
    ]
    course = Course(settled(stages=stages), SIZES)
    assert [stretch.steps for stretch in course.stretches] == [10, 5, 98, 83, 7]
    assert [stretch.first for stretch in course.stretches] == [0, 10, 15, 113, 196] and course.steps == 203
    assert [course.at(step).name for step in (0, 9, 10, 14, 202)] == ["steps", "steps", "tokens", "tokens", "last"]
    assert [getattr(course.begins(step), "name", None) for step in (0, 1, 10)] == ["steps", None, "tokens"]


def test_each_stage_has_a_rate_of_its_own_over_its_own_steps() -> None:
    own = {"lr": 3e-4, "schedule": "linear", "warmup": 0.5, "min_lr": 0.0}
    course = Course(settled(stages=[stage(), stage("two", steps=20, optim=own)], optim={"lr": 1e-4}), SIZES)
    first = [schedule.learning_rate(step, 10, Optim(lr=1e-4)) for step in range(10)]
    second = [
        schedule.learning_rate(step, 20, Optim(lr=3e-4, schedule="linear", warmup=0.5, min_lr=0.0))
        for step in range(20)
    ]
    assert [course.learning_rate(step) for step in range(30)] == first + second


def test_what_was_seen_is_counted_from_the_step_alone() -> None:
    ramp = {"books": {"from": 0.9, "to": 0.5}, "chats": {"from": 0.1, "to": 0.5}}
    course = Course(settled(stages=[stage(), stage("two", steps=200, mixture=ramp)]), SIZES)
    for step in (0, 3, 10, 11, 150, 210):
        used = np.concatenate([np.empty(0, np.int64), *(course.ids(done) for done in range(step))])
        assert course.seen(step) == {"books": int((used < 500).sum()), "chats": int((used >= 500).sum())}
    assert course.tokens(210) == {name: 8 * count for name, count in course.seen(210).items()}
    assert "books" in course.told(210) and len(list(course.table())) == 6


@given(st.integers(1, 3), st.integers(0, 2**40), st.integers(0, 29))
def test_a_step_has_the_same_sequences_whatever_comes_after_it(length: int, seed: int, step: int) -> None:
    """Nor does it matter in which order a recipe names its sources."""
    mixture = {"books": 0.8, "chats": 0.2}
    train = {"seed": seed}
    short = Course(settled(stages=[stage(), stage("two", steps=20, mixture=mixture)], train=train), SIZES)
    turned = dict(reversed(mixture.items()))
    long = settled(stages=[stage(), stage("two", steps=20, mixture=turned), stage("three", steps=length)], train=train)
    assert (short.ids(step) == Course(long, SIZES).ids(step)).all()


# --- batches of several sources -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    folder = tmp_path_factory.mktemp("sources")
    tokenizer = write_tokenizer(folder / "tokenizer")
    named = {
        name: Source([write_rows(folder / f"{name}.jsonl", texts(count))]) for name, count in (("a", 60), ("b", 25))
    }
    data = Data(train=named, seq_len=8)
    keys = data.keys("train").items()
    return Pool({name: prepare(data, tokenizer, folder / "cache", key, lambda _: None) for name, key in keys})


@pytest.mark.parametrize("layout", [(12, 1, 1), (3, 2, 2), (2, 2, 3), (1, 3, 4)])
def test_the_same_global_batches_at_any_world_size(pool: Pool, layout: tuple[int, int, int]) -> None:
    stages = [stage(), stage("two", mixture={"a": 1, "b": {"from": 0, "to": 2}})]
    data = {"train": {name: {"files": [name]} for name in pool.sources}, "seq_len": 8}
    settings = resolve({**to_plain(settled()), "data": data, "stages": stages}, "x.yaml")
    course = Course(settings, pool.sizes)
    whole = Batches(pool, BatchLayout(12, 1, 1), 0, 0, course.ids)
    parts = [Batches(pool, BatchLayout(*layout), 0, rank, course.ids) for rank in range(layout[2])]
    for step in (0, 9, 10, 19, 3):  # also back: nothing is kept
        shares = [part.get(step) for part in parts]
        rows = sorted(row for share in shares for micro in share.micro_batches for row in micro.input_ids.tolist())
        assert rows == sorted(whole.get(step).micro_batches[0].input_ids.tolist())
        assert (sum(share.hash for share in shares) - whole.get(step).hash) % 2**64 == 0
        assert whole.samples(step) == [str(place) for place in pool.places(course.ids(step))]
    names = {str(sample).partition(":")[0] for step in range(20) for sample in whole.samples(step)}
    assert names == {"a", "b"}


def test_sequences_of_two_sources_are_told_apart_by_their_hashes(pool: Pool) -> None:
    ids = itertools.count()
    batches = Batches(pool, BatchLayout(1, 1, 1), 0, 0, lambda _: np.array([next(ids)]))
    assert len({batches.get(0).hash for _ in range(pool.sequences)}) == pool.sequences


def test_a_pool_has_one_length_and_the_fingerprint_of_all(pool: Pool, tmp_path: Path) -> None:
    a, b = pool.sources.values()
    assert Pool({"b": b, "a": a}).fingerprint == pool.fingerprint != Pool({"a": b, "b": a}).fingerprint
    assert Pool({"": a}).fingerprint == a.fingerprint
    longer = Data(train=[write_rows(tmp_path / "rows.jsonl", texts(30))], seq_len=16)
    other = prepare(longer, write_tokenizer(tmp_path / "tokenizer"), tmp_path / "cache", "train", lambda _: None)
    with pytest.raises(ConfigError, match="sources of several lengths .*'a': 8, 'c': 16"):
        Pool({"a": a, "c": other})


# --- what a recipe may say ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"train": {"steps": 5}}, "give either train.steps or stages, not both: each stage says how long it is"),
        ({"train": {"epochs": 1}}, "give either train.epochs or stages, not both: each stage says how long it is"),
        ({"stages": [stage(), stage()]}, "stages: the name 'one' stands twice: each stage has its own"),
        ({"stages": [{"name": "one"}]}, "stages.one: give one of steps, epochs and tokens"),
        ({"stages": [stage(epochs=1, steps=2)]}, "stages.one: give one of steps, epochs and tokens"),
        ({"stages": []}, "stages: expected array of length >= 1"),
        (
            {"stages": [stage(mixture={"book": 1})]},
            "stages.one.mixture.book: data.train has no such source: did you mean books?",
        ),
        (
            {"stages": [stage(mixture={"books": 0})]},
            "stages.one.mixture.books=0: a weight is a number above 0 (one end may be 0)",
        ),
        (
            {"stages": [stage(mixture={"books": -1})]},
            "stages.one.mixture.books=-1: a weight is a number above 0 (one end may be 0)",
        ),
        (
            {"stages": [stage(mixture={"books": {"from": -1, "to": 1}})]},
            "stages.one.mixture.books={from: -1, to: 1}: a weight is a number above 0 (one end may be 0)",
        ),
        (
            {"stages": [stage(mixture={"books": {"from": 0, "to": 1}})]},
            "stages.one.mixture: at one end all weights are 0: give one of them another",
        ),
        (
            {"stages": [stage(mixture={"books": {"from": 1, "to": 2}}, epochs=1)]},
            "stages.one.epochs=1: where weights change, give steps or tokens",
        ),
        (
            {"stages": [stage(mixture={})]},
            "stages.one.mixture names no source: give weights of books, chats, or leave it out",
        ),
        ({"stages": [stage(seq_len=16)]}, "unknown key stages[0].seq_len: "),
        ({"stages": [stage(optim={"rate": 1})]}, "unknown key stages[0].optim.rate: "),
        (
            {"stages": [stage(mixture={"books": {"form": 1, "to": 1}})]},
            "unknown key stages[0].mixture.books.form: did you mean ",
        ),
        (
            {"data": {"train": {"books": {"file": ["b"]}}}},
            "unknown key data.train.books.file: did you mean data.train.books.files?",
        ),
        (
            {"data": {"train": ["a"]}, "stages": [stage(mixture={"books": 1})]},
            "stages.one.mixture.books: data.train is a list: give its sources names, to weigh them",
        ),
        (
            {"evaluation": {"limits": {"general": 0.1}}},
            "evaluation.limits.general needs evaluation.every: losses to look at",
        ),
        (
            {"evaluation": {"every": 5, "limits": {"genral": 0.1}}},
            "evaluation.limits.genral: there is no held-out set genral; there are: domain, general",
        ),
        (
            {"evaluation": {"every": 5, "best": "x"}, "data": {"evaluation": ["e"]}},
            "evaluation.best: there is no held-out set x; there are: none: data.evaluation is a list",
        ),
        ({"data": {"train": []}}, "data.train: no file is given"),
        (
            {"data": {"train": {"books": {"files": ["b"], "seq_len": 4}}}, "stages": None, "train": {"steps": 1}},
            "train.books: seq_len=4: only a held-out set may have a length of its own",
        ),
        (
            {"data": {"evaluation": {"long": {"files": ["e"], "seq_len": 16}}}},
            "evaluation.long: seq_len=16: only a held-out set may have a length of its own, and none beyond data.seq_len=8",
        ),
    ],
)
def test_a_bad_recipe_is_one_line(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as error:
        settled(**changes)
    assert str(error.value).startswith(f"x.yaml: {line}") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (
            stage(tokens=95),
            "stages.one is less than one batch of train.global_batch_size=12 sequences of data.seq_len=8",
        ),
        (stage(mixture={"books": 1, "chats": 1e-3}), "stages.one.mixture.chats: so small a weight gives it none of "),
    ],
)
def test_a_stage_that_its_data_cannot_fill_is_one_line(given: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as error:
        Course(settled(stages=[given]), SIZES)
    assert str(error.value).startswith(line) and "\n" not in str(error.value)


def test_each_stage_has_the_rate_of_its_sources() -> None:
    stages = [stage("texts", mixture={"books": 1}), stage("all"), stage("own", optim={"lr": 3e-4})]
    settings = settled(stages=stages)
    assert [one.optim.lr for one in settings.stages or []] == [1e-5, 2e-5, 3e-4]
    assert resolve(to_plain(settings), "x.yaml") == settings
    [note] = schedule.notes(settings)
    assert note.startswith("stages.own.optim.lr=0.0003 is above 5e-5: full instruction tuning")
    [note] = schedule.notes(settled(stages=[stage("texts", mixture={"books": 1}, optim={"lr": 2e-5})]))
    assert note.startswith("stages.texts.optim.lr=2e-05 is above 1e-5: continual pre-training")
    assert [one.optim.lr for one in settled(stages=stages, optim={"lr": 1e-6}).stages or []] == [1e-6, 1e-6, 3e-4]
    assert settings.purpose() == settings.result == "chat"
    assert settled(stages=[stage(mixture={"books": 1})]).result == "text"
    answers = settled(data={"train": {"chats": {"files": ["c"], "format": "completion"}}})
    assert answers.result == "completion" and answers.optim.lr == 2e-5
    with pytest.raises(ConfigError, match="optim.lr is missing"):
        settled(model={"path": None, "config": {"model_type": "llama"}, "tokenizer": "t"})


def test_stages_are_exact_and_a_recipe_without_them_stays_what_it_was() -> None:
    assert exact_part(settled())["stages"][0]["steps"] == 10
    assert "stages" not in exact_part(settled(stages=None, train={"steps": 1}))


def test_file_names_of_sources_count_from_the_recipe(tmp_path: Path) -> None:
    tree = recipe.read(ROOT / "recipes" / "stages.yaml")
    files = [file for one in tree["data"]["train"].values() for file in one["files"]]
    assert files == [str(ROOT / "recipes" / "demo" / name) for name in ("train.jsonl", "chats.jsonl")]
    settings = resolve(tree, "recipes/stages.yaml")
    assert [one.name for one in settings.stages or []] == ["pretrain", "instruct"]


# --- real ranks -----------------------------------------------------------------------------------------

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
    [problem] = audit(run.path).problems
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
        curve = {event.step: event.value for event in board.Scalars(f"evaluation_loss/{name}")}
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
