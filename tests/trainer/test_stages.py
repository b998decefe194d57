"""Stages of one run: what they are made of, and what a recipe may not say."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from settings import ConfigError, merge, to_plain
from tests.trainer.data.samples import texts, write_rows, write_tokenizer
from tests.trainer.ranks import ROOT
from trainer import recipe, schedule
from trainer.config import exact_part, resolve
from trainer.data.batches import Batches
from trainer.data.order import batch_indices
from trainer.data.prepare import prepare
from trainer.data.prepared import Pool
from trainer.layout import BatchLayout
from trainer.schema import Optim, TrainConfig
from trainer.sources import Data, Source
from trainer.stages import Course

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


def test_a_rate_that_every_stage_has_its_own_of_is_typed_for_one_of_them() -> None:
    tree = {"stages": [{"name": "one", "optim": {"lr": 1e-3}}, {"name": "two", "optim": {"lr": 1e-4}}]}
    with pytest.raises(ConfigError, match=r"optim.lr=0.01 changes nothing: .* stages.one.optim.lr=0.01"):
        recipe.overridden(tree, ["lr=1e-2"])
    stages = recipe.overridden(tree, ["optim.warmup=0.1", "stages.two.optim.lr=1e-2"])["stages"]
    assert [stage["optim"]["lr"] for stage in stages] == [1e-3, 1e-2]
    recipe.overridden({"stages": [*tree["stages"], {"name": "three"}]}, ["optim.lr=1e-2"])


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
