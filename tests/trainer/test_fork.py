"""A new run from another's checkpoint."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from durable import nonce
from settings import ConfigError, merge
from tests.trainer.ranks import Zygote, write_run
from trainer import config, recipe
from trainer.audit import audit
from trainer.checkpoint.format import BLOCK, Manifest, write_manifest
from trainer.prepare import check_fork

PLAIN = {"model": {"config": {"attention_dropout": 0.0}}, "checkpoint": {"keep": 5}}
"""Without dropout: a fork draws its own random numbers."""


def test_a_fork_goes_on_as_the_other_run_did(tmp_path: Path, zygote: Zygote) -> None:
    first = write_run(tmp_path / "first", zygote, **PLAIN)
    assert first.go(2) == [0, 0]
    checkpoint = recipe.checkpoint_to_fork(first.path, 40)
    if gives := os.getuid() == 0:
        os.chown(checkpoint, 1, -1)  # a colleague's
    second = write_run(tmp_path / "second", zygote, **merge(PLAIN, {"fork": str(checkpoint)}))
    assert second.go(3) == [0, 0, 0]
    assert "other than" not in second.log() and "at step 40 of 60" in second.log()
    assert (f"{checkpoint} belongs to another user (1)" in second.log()) == gives
    was, now = first.history("hash", "lr")[40:], second.history("hash", "lr")
    assert now == was
    losses = [(a[1], b[1]) for a, b in zip(first.history("loss")[40:], second.history("loss"), strict=True)]
    assert all(abs(a - b) < 1e-4 for a, b in losses)  # another world size: the sums round differently
    proof = audit(second.path)
    assert proof.ok and "steps 1-40 are of the run that this one was forked from" in str(proof)


def test_a_limit_of_a_fork_counts_from_where_it_begins(tmp_path: Path, zygote: Zygote) -> None:
    """Though the other run has evaluated there: the set that is limited now was not among its own. And though that is
    broken off, and made after the resume, which is no fork any more."""
    first = write_run(tmp_path / "first", zygote, train={"steps": 15}, evaluation={"every": 5}, export=False)
    assert first.go(1) == [0], first.log()
    held_out = {"general": {"files": [str(first.path / "evaluation.jsonl")]}}
    again = {"train": {"steps": 18}, "fork": str(recipe.checkpoint_to_fork(first.path, 15)), "export": False}
    again |= {"data": {"evaluation": held_out}, "evaluation": {"every": 10, "limits": {"general": 0.5}}}
    second = write_run(tmp_path / "second", zygote, **again)
    second.start_with_fault(1, "evaluation", 0, "wait")
    second.reaches_fault()
    second.signal(signal.SIGTERM)
    second.go_on()
    assert second.wait() == [75] and not second.events("evaluation"), second.log()
    assert second.go(1) == [0], second.log()
    assert [event["step"] for event in second.events("evaluation")] == [15, 18]
    assert second.events("step")[0]["step"] == 16


def test_a_fork_may_change_what_a_resume_may_not(tmp_path: Path, zygote: Zygote) -> None:
    first = write_run(tmp_path / "first", zygote, train={"steps": 15})
    assert first.go(1) == [0]
    checkpoint = recipe.checkpoint_to_fork(first.path, None)
    changed: dict[str, Any] = {"optim": {"lr": 2e-3}, "train": {"seed": 7, "steps": 400}, "checkpoint": {"every": 1000}}
    changed["fork"] = str(checkpoint)
    second = write_run(tmp_path / "second", zygote, **changed)
    second.start(1)
    second.reaches(17)
    second.kill()
    assert second.go(1) == [0]  # before its first own checkpoint it starts from the other's again
    assert "other than in the run that this one starts from: optim.lr 0.01 -> 0.002" in second.log()
    assert [step for (step,) in second.history()] == list(range(16, 401))
    assert [event["step"] for event in second.events("resume")] == [15, 15]


def test_a_fork_whose_checkpoint_is_broken_says_so(tmp_path: Path, zygote: Zygote) -> None:
    first = write_run(tmp_path / "first", zygote, train={"steps": 20}, export=False)
    assert first.go(1) == [0]
    checkpoint = recipe.checkpoint_to_fork(first.path, None)
    second = write_run(tmp_path / "second", zygote, fork=str(checkpoint))
    (checkpoint / "rank-0000.safetensors").unlink()
    assert second.go(2) == [78, 78]
    assert f"fork={checkpoint}: rank-0000.safetensors is missing" in second.log()


def test_what_cannot_be_forked_is_said_before_the_queue(tmp_path: Path) -> None:
    """The trainer would say it as well, after a wait for nodes."""
    model = {"config": {"model_type": "llama", "hidden_size": 8, "vocab_size": 512}, "tokenizer": "t"}
    rest = {"data": {"train": ["a.jsonl"], "seq_len": 8}, "train": {"steps": 9, "global_batch_size": 1}}
    settings = config.resolve({"name": "x", "model": model, "optim": {"lr": 1e-3}, **rest}, "recipe.yaml")
    exact = config.exact_part(settings)

    def saved(exact: dict[str, Any]) -> Path:
        (folder := tmp_path / nonce()).mkdir()
        write_manifest(folder, Manifest(1, 7, 1, {"world_size": 1}, exact, "f", {}, BLOCK, {}, []))
        return folder

    def refused(exact: dict[str, Any], steps: int = 9) -> str:
        with pytest.raises(ConfigError) as error:
            check_fork(settings, saved(exact), steps)
        return str(error.value)

    with pytest.raises(ConfigError, match="MANIFEST.json.*: take another: --fork RUN@STEP"):
        check_fork(settings, tmp_path, 9)
    assert refused(exact, steps=7) == "--fork: the checkpoint is of step 7, this run has 7: make it longer"
    larger = merge(exact, {"model": {"config": {"hidden_size": 16}}})
    assert refused(larger) == "--fork: the checkpoint is of another model: model.config: hidden_size 16 -> 8"
    assert "has other model.new_tokens: export its run" in refused(merge(exact, {"model": {"new_tokens": ["<a>"]}}))
    check_fork(settings, saved(exact), 9)


def test_a_step_that_is_not_there_is_answered_with_those_that_are(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ConfigError, match="steps that are there: none$"):
        recipe.checkpoint_to_fork(tmp_path, 3)
