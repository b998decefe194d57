"""Gradients that are not finite, on one rank: all skip alike, and a step that fails again ends the run."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.trainer.ranks import Run
from tests.trainer.test_engines import DDP, FSDP, zero
from trainer.guard import Guard, happened_before

NewRun = Callable[..., Run]


def go(run: Run, world: int, rank: int, first: int, count: int) -> list[int]:
    return run.go(world, argv=["tests.trainer.with_a_nan", *map(str, (rank, first, count)), f"{run.path}/config.yaml"])


@pytest.mark.parametrize(
    ("engine", "precision"),
    [
        (DDP, "fp32"),
        (zero(3), "fp32"),
        pytest.param(FSDP, "fp32", marks=pytest.mark.nightly),
        pytest.param(FSDP, "bf16", marks=pytest.mark.nightly),
        pytest.param(zero(2), "fp32", marks=pytest.mark.nightly),
        pytest.param(zero(0), "fp32", marks=pytest.mark.nightly),
        pytest.param(zero(1), "master32", marks=pytest.mark.nightly),
        pytest.param(zero(3), "master32", marks=pytest.mark.nightly),
    ],
    ids=str,
)
def test_all_ranks_skip_the_step_of_one(new_run: NewRun, engine: dict[str, Any], precision: str) -> None:
    shape = {"train": {"steps": 10, "precision": precision}, "engine": engine, "evaluation": {"every": 0}}
    run = new_run("run", **shape)
    assert go(run, 2, rank=1, first=5, count=2) == [0, 0], run.log()
    steps = run.events("step")
    assert [e["step"] for e in steps if e.get("skipped")] == [5, 6]
    assert [e["step"] for e in steps if e["loss"] is None] == [5, 6]
    manifest = json.loads((run.path / "checkpoints" / run.checkpoints()[-1] / "MANIFEST.json").read_text())
    assert {parameter["step"] for parameter in manifest["parameters"].values()} == {8}
    assert steps[6]["loss"] == pytest.approx(steps[3]["loss"], rel=0.2)  # the weights are whole


def test_three_in_a_row_go_back_and_a_second_time_end_the_run(new_run: NewRun) -> None:
    shape = {"train": {"steps": 10}, "checkpoint": {"every": 1}, "evaluation": {"every": 0}}
    whole, run = new_run("whole", **shape), new_run("run", **shape)
    assert whole.go(2) == [0, 0], whole.log()
    assert go(run, 2, rank=1, first=5, count=3) == [1, 1]
    assert "the gradient of steps 5 to 7 is not finite: lower optim.lr" in run.log()
    assert run.checkpoints()[-1].startswith("step-00000004-"), run.checkpoints()
    assert go(run, 2, rank=0, first=1, count=3) == [93, 93]  # the fifth step again
    assert "is not finite, again" in run.log()
    told = run.events("diverged")
    assert [e["step"] for e in told] == [5, 5] and set(told[0]["samples"]) == {"5", "6", "7"}
    assert all(len(ids) == 12 for ids in told[0]["samples"].values())
    assert run.go(2) == [0, 0], run.log()
    assert run.history("loss", "grad_norm") == whole.history("loss", "grad_norm")
    assert run.done()["sha256"] == whole.done()["sha256"]


def test_what_counts() -> None:
    guard = Guard()
    for step, norm in enumerate([1.0, float("nan"), float("inf"), 2.0, float("nan")], 1):
        guard.saw_norm(step, norm)
    assert guard.skipped == [5]
    assert [guard.saw_loss(2.0) for _ in range(100)] == [None] * 100
    assert guard.saw_loss(19.9) is None and guard.saw_loss(30.0) == 15.0
    assert happened_before([{"event": "diverged", "step": 5}], 5)
    assert not happened_before([{"event": "diverged", "step": 4}, {"event": "step", "step": 5}], 5)
