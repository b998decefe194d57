"""What a run has saved: whole at every kill, counted once, never pushed out, never mistaken for another run's."""

from __future__ import annotations

import json
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from settings import read_yaml
from tests.trainer.ranks import Run
from tests.trainer.test_checkpoint import change_engine, train_to_a_stop
from tests.waiting import wait_until
from trainer.checkpoint.load import Reader
from trainer.config import resolve
from trainer.model.weights import build

NewRun = Callable[..., Run]


def verify(checkpoint: Path) -> None:
    """Read all of a checkpoint; raises CheckpointBroken."""
    with Reader(checkpoint) as reader:
        for name, parameter in reader.manifest.parameters.items():
            size = 1
            for length in parameter.shape:
                size *= length
            for kind in ("weights", "exp_avg", "exp_avg_sq"):
                reader.read(name, kind, 0, size)


EVERY = [(0, count) for count in range(1, 18)] + [(1, count) for count in range(1, 4)]


@pytest.mark.parametrize(
    "points",
    [
        pytest.param([(0, 3), (0, 9), (0, 15), (1, 2)], id="some"),
        pytest.param(EVERY, id="every", marks=pytest.mark.nightly),
    ],
)
def test_a_kill_at_every_call_of_a_save_leaves_the_old_or_the_new(
    new_run: NewRun, points: list[tuple[int, int]]
) -> None:
    whole, run = new_run("whole"), new_run("run", checkpoint={"every": 2})
    assert whole.go(2) == [0, 0]
    train_to_a_stop(run, 2)
    steps, where = [], set()
    for rank, count in points:
        module = ["tests.trainer.with_a_kill", str(rank), str(count), str(run.path / "config.yaml")]
        codes = run.go(2, argv=module)
        assert codes[rank] == -signal.SIGKILL and codes[1 - rank] != 0, run.log()
        for name in run.checkpoints():
            verify(run.path / "checkpoints" / name)
        assert run.checkpoints()
        steps.append(run.events("resume")[-1]["step"])
        where |= set(re.findall(r"killed before (\S+) (.?[a-zA-Z]+)", run.log(rank)))
    files = {("open", "rank"), ("fsync", "rank"), ("open", "MANIFEST"), ("fsync", "MANIFEST")}
    folders = {("os.mkdir", ".tmp"), ("fsync", ".tmp"), ("os.rename", ".tmp"), ("fsync", "checkpoints")}
    every = files | folders | {("os.rename", "step")}  # the last one: retention
    assert where >= every if points == EVERY else len(where & every) > 1, where
    assert steps == sorted(steps) and 0 < steps[0] < steps[-1] < 60
    assert run.go(2) == [0, 0], run.log()
    assert run.history("loss", "hash") == whole.history("loss", "hash")
    assert run.done()["sha256"] == whole.done()["sha256"]
    assert not list((run.path / "checkpoints").glob(".t*"))


def counted_evaluations(run: Run) -> list[int]:
    resumes = [(e["epoch"], e["step"]) for e in run.events("resume")]
    return [
        e["step"] for e in run.events("evaluation") if all(e["step"] <= s for epoch, s in resumes if epoch > e["epoch"])
    ]


def test_an_evaluation_that_is_due_with_a_save_is_made_once(new_run: NewRun) -> None:
    run = new_run("run", train={"steps": 40}, evaluation={"every": 1, "batches": 1}, checkpoint={"every": 1})
    train_to_a_stop(run, 2)
    run.start(2)
    run.reaches(run.events("stop")[0]["step"] + 3)
    run.kill()
    assert run.go(2) == [0, 0], run.log()
    assert counted_evaluations(run) == list(range(1, 41))


def went_on_or_refused(run: Run, epoch: int) -> bool:
    return "outlast: " in run.log() or any(e["epoch"] == epoch for e in run.events("step"))


def test_retention_keeps_the_line_and_not_a_branch_that_was_given_up(new_run: NewRun) -> None:
    run = new_run("run", train={"steps": 100_000}, checkpoint={"every": 20})
    first = train_to_a_stop(run, 2)
    train_to_a_stop(run, 2)
    for step in (90_000, 90_001):  # what a zombie of attempt 1 committed after attempt 2 had resumed
        shutil.copytree(first, first.with_name(f"step-{step:08d}-e0001"))
    run.start(2)
    wait_until(lambda: [e for e in run.events("save") if e["epoch"] == 3], run.log())
    saved = [e["step"] for e in run.events("save") if e["epoch"] == 3][0]
    run.reaches(saved + 2)
    run.kill()
    run.start(2)
    wait_until(lambda: went_on_or_refused(run, 4), run.log())
    assert [e["step"] >= saved for e in run.events("resume") if e["epoch"] == 4] == [True], run.log()


def test_a_checkpoint_without_its_manifest_is_passed_over_and_it_is_said(new_run: NewRun) -> None:
    run = new_run("run")
    older, damaged = train_to_a_stop(run, 2), train_to_a_stop(run, 2)
    (damaged / "MANIFEST.json").unlink()
    assert run.go(2) == [0, 0], run.log()
    assert run.events("resume")[-1]["from"] == older.name
    assert f"passed over a checkpoint that does not verify: {damaged.name}" in run.log()


@pytest.mark.parametrize("engine", ["fsdp", pytest.param("ddp", marks=pytest.mark.nightly)])
def test_ranks_that_hold_nothing_of_a_parameter(new_run: NewRun, engine: str) -> None:
    """k_proj and v_proj have two rows, the ranks are three: one of them holds none."""
    shape = {"model": {"config": {"num_attention_heads": 16, "num_key_value_heads": 1}}, "engine": {"kind": engine}}
    whole, run = new_run("whole", **shape), new_run("run", **shape)
    assert whole.go(3) == [0] * 3, whole.log()
    checkpoint = train_to_a_stop(run, 3)
    for kind, world in (("ddp", 2), ("fsdp", 4), ("fsdp", 3)):
        change_engine(run, kind)
        check = ["tests.trainer.check_loaded", str(run.path / "config.yaml"), str(checkpoint)]
        assert run.go(world, argv=check) == [0] * world, run.log()
    change_engine(run, engine)
    assert run.go(3) == [0] * 3, run.log()
    assert run.history("loss", "grad_norm") == whole.history("loss", "grad_norm")
    assert run.done()["sha256"] == whole.done()["sha256"]


def test_a_model_folder_that_computes_another_function_is_refused(new_run: NewRun, tmp_path: Path) -> None:
    run = new_run("run", train={"steps": 100_000})
    config = run.path / "config.yaml"
    settings = resolve(read_yaml(config), "config.yaml")
    folder = tmp_path / "model"
    build(settings.model, 0).save_pretrained(folder)
    text = config.read_text()
    start = text.index("model:\n")
    end = text.index("\ndata:\n")
    tokenizer = settings.model.tokenizer
    config.write_text(f"{text[:start]}model:\n  path: {folder}\n  tokenizer: {tokenizer}{text[end:]}")
    train_to_a_stop(run, 2)
    file = folder / "config.json"
    shape = json.loads(file.read_text())
    shape["rope_parameters"]["rope_theta"] = 77.0
    file.write_text(json.dumps(shape))
    run.start(2)
    wait_until(lambda: went_on_or_refused(run, 2), run.log())
    assert "was 10000.0 and is 77.0 now" in run.log(), run.log()
