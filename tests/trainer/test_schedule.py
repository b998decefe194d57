"""The learning rate of a step, beside transformers' own schedulers, and the rate that a recipe does not name."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers.optimization import get_scheduler

from settings import ConfigError, merge, parse_yaml
from trainer import recipe, schedule
from trainer.config import resolve
from trainer.schedule import learning_rate
from trainer.schema import Optim, TrainConfig

PEAK = 1e-3
TOTALS, SHARES = st.integers(1, 500), st.floats(0, 1)


@given(TOTALS, SHARES, st.just(0.0) | st.floats(1e-6, 1), st.sampled_from(["cosine", "linear", "constant", "wsd"]))
def test_the_rate_rises_to_the_peak_and_falls_to_its_share(total: int, warmup: float, least: float, name: Any) -> None:
    optim = Optim(lr=PEAK, warmup=warmup, min_lr=least, schedule=name)
    rates = [learning_rate(step, total, optim) for step in range(total)]
    top = round(total * warmup)
    assert all(0 < rate <= PEAK * (1 + 1e-9) for rate in rates)
    assert rates[:top] == [pytest.approx(PEAK * (step + 1) / top, abs=1e-12) for step in range(top)]
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert all(rate >= PEAK * least * (1 - 1e-9) for rate in rates[top:])
    if top < total:
        assert rates[top] == pytest.approx(PEAK, abs=1e-12)


def of_transformers(name: str, total: int, warmup: int, **options: float) -> list[float]:
    """What its scheduler gives each optimizer step of a run."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    scheduler = get_scheduler(name, optimizer, warmup, total, options or None)
    rates = []
    for _ in range(total):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return rates


@settings(deadline=None, max_examples=50)
@example(total=1000, share=0.05, least=0.1)
@given(total=st.integers(1, 300), share=SHARES, least=SHARES)
def test_from_the_end_of_the_warmup_on_the_rate_is_that_of_transformers(total: int, share: float, least: float) -> None:
    warmup, decay = round(total * share), round(total * (1 - share) / 2)
    theirs = {
        "cosine": ("cosine_with_min_lr", {"min_lr_rate": least}),
        "linear": ("linear", {}),
        "constant": ("constant_with_warmup", {}),
        "wsd": ("warmup_stable_decay", {"num_decay_steps": decay, "min_lr_ratio": least}),
    }
    for name, (other, options) in theirs.items():
        optim: Any = {"schedule": name, "warmup": share, "min_lr": 0.0 if name == "linear" else least}
        ours = [learning_rate(step, total, Optim(lr=PEAK, decay=decay / total, **optim)) for step in range(total)]
        expected = of_transformers(other, total, warmup, **options)
        assert ours[warmup:] == [pytest.approx(rate, abs=1e-12) for rate in expected[warmup:]], name


def test_the_formula() -> None:
    optim = Optim(lr=2e-5)
    for step in range(200):
        cosine = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (step - 10) / 190))
        expected = 2e-5 * ((step + 1) / 10 if step < 10 else cosine)
        assert learning_rate(step, 200, optim) == pytest.approx(expected, abs=1e-12)


# --- the rate that a recipe does not name, and the one that is unusual ----------------------------------


def resolved(**changes: Any) -> TrainConfig:
    base = {
        "name": "x",
        "model": {"path": "weights"},
        "data": {"train": ["a"], "seq_len": 8},
        "train": {"global_batch_size": 4, "steps": 1},
    }
    return resolve(merge(base, changes), "x.yaml")


def test_the_default_rate_is_by_what_the_run_does() -> None:
    assert resolved(data={"format": "chat"}).optim.lr == 2e-5
    assert resolved().optim.lr == resolved(optim={"lr": None}).optim.lr == 1e-5
    assert resolved(optim={"lr": 3e-6}).optim.lr == 3e-6
    new = {"path": None, "config": {"model_type": "llama"}, "tokenizer": "t"}
    assert resolved(model=new, optim={"lr": 1e-3}).optim.lr == 1e-3
    with pytest.raises(ConfigError) as error:
        resolved(model=new, data={"format": "chat"})
    assert str(error.value) == (
        "x.yaml: optim.lr is missing: a model that starts from nothing (model.config) has no default rate: "
        "give one, for example optim.lr=3e-4"
    )


@pytest.mark.parametrize(
    ("kind", "rate", "said"),
    [
        ("chat", 9e-6, "optim.lr=9e-06 is below 1e-5: "),
        ("chat", 1e-5, None),
        ("chat", 5e-5, None),
        ("chat", 1e-4, "optim.lr=0.0001 is above 5e-5: "),
        ("text", 1e-7, None),
        ("text", 1e-5, None),
        ("text", 2e-5, "optim.lr=2e-05 is above 1e-5: "),
    ],
)
def test_an_unusual_rate_for_existing_weights_is_said(kind: str, rate: float, said: str | None) -> None:
    notes = schedule.notes(resolved(data={"format": kind}, optim={"lr": rate}))
    assert len(notes) == (said is not None) and all(note.startswith(str(said)) for note in notes)
    new = {"path": None, "config": {"model_type": "llama"}, "tokenizer": "t"}
    assert schedule.notes(resolved(model=new, data={"format": kind}, optim={"lr": rate})) == []


def test_a_submission_says_it_and_writes_the_rate_down(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").touch()
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    data: dict[str, Any] = {"train": [str(tmp_path / "rows.jsonl")], "seq_len": 8}
    tree = {"name": "x", "model": {"path": str(tmp_path)}, "data": data, "train": {"global_batch_size": 4, "steps": 1}}
    ready = recipe.checked(tree, tmp_path / "run", 2, "x.yaml")
    assert parse_yaml(ready.text, "config.yaml")["optim"]["lr"] == 1e-5 and len(ready.batch.splitlines()) == 1
    ready = recipe.checked({**tree, "optim": {"lr": 3e-4}}, tmp_path / "run", 2, "x.yaml")
    assert ready.batch.splitlines()[1].startswith("optim.lr=0.0003 is above 1e-5: continual pre-training")
