"""The DeepSpeed JSON and the FSDP block that this project was founded on run as they are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from settings import read_yaml
from tests.trainer.conftest import new_run
from tests.trainer.ranks import Run
from trainer import recipe

__all__ = ["new_run"]

JSON, BLOCK = (Path(__file__).parent / name for name in ("deepspeed.json", "fsdp.json"))


def checked(run: Run, world: int, new: bool = True) -> str:
    """The run's config as launch.py writes it for so many ranks. Returns how they share a batch."""
    path = run.path / "config.yaml"
    ready = recipe.checked(read_yaml(path), run.path, world, str(path), new=new)
    path.write_text(ready.text)
    return ready.batch


def change_engine(run: Run, world: int, engine: dict[str, Any]) -> str:
    run.change_engine(engine)
    return checked(run, world, new=False)


ZERO, FSDP = {"kind": "deepspeed", "config": str(JSON)}, {"kind": "fsdp", "config": str(BLOCK)}
SHAPE: dict[str, Any] = {
    "train": {"steps": 6, "precision": "master32", "global_batch_size": 64},
    "engine": ZERO,
    "checkpoint": {"every": 50},
    "evaluation": {"every": 0},
}


def test_they_train_as_they_are(new_run: Callable[..., Run]) -> None:
    for engine, batch in ((ZERO, 2 * 8 * 2), (FSDP, 64)):
        run = new_run(engine["kind"], **{**SHAPE, "train": {**SHAPE["train"], "steps": 2}, "engine": engine})
        config = run.path / "config.yaml"
        if engine is ZERO:  # the batch that it fixes is the run's
            config.write_text(config.read_text().replace("  global_batch_size: 64\n", ""))
        assert checked(run, 2).startswith(f"global batch {batch} = ")
        assert run.go(2) == [0, 0], run.log()
        assert [step for (step,) in run.history()] == [1, 2]


@pytest.mark.nightly
def test_it_trains_and_goes_on_at_another_size(new_run: Callable[..., Run]) -> None:
    run = new_run("run", **SHAPE)
    assert checked(run, 4) == "global batch 64 = 2 micro x 8 accumulation x 4 ranks"
    assert read_yaml(run.path / "config.yaml")["engine"]["config"] == json.loads(JSON.read_text())
    run.stop_after(4, 2)
    assert checked(run, 2, new=False).splitlines() == [
        "global batch 64 = 2 micro x 16 accumulation x 2 ranks",
        "engine.config: gradient_accumulation_steps=8: the run's global batch stays, so it is 16",
    ]
    assert run.go(2) == [0, 0], run.log()
    assert [step for (step,) in run.history()] == [1, 2, 3, 4, 5, 6]


@pytest.mark.nightly
@pytest.mark.parametrize("engine", [ZERO, FSDP], ids=["deepspeed", "fsdp"])
def test_they_go_on_bit_for_bit(new_run: Callable[..., Run], engine: dict[str, Any]) -> None:
    shape = {**SHAPE, "engine": engine}
    whole, cut = new_run("whole", **shape), new_run("cut", **shape)
    for run in (whole, cut):
        checked(run, 4)
    assert whole.go(4) == [0] * 4, whole.log()
    cut.stop_after(4, 2)
    assert cut.go(4) == [0] * 4, cut.log()
    assert cut.history("loss", "grad_norm", "hash") == whole.history("loss", "grad_norm", "hash")
    assert cut.done()["sha256"] == whole.done()["sha256"]


@pytest.mark.nightly
def test_they_go_on_from_each_other_at_two_ranks_and_four(new_run: Callable[..., Run]) -> None:
    run = new_run("run", **{**SHAPE, "train": {**SHAPE["train"], "steps": 60, "micro_batch_size": 2}, "engine": FSDP})
    equation, note = checked(run, 2).split("\n")
    assert equation == "global batch 64 = 2 micro x 16 accumulation x 2 ranks"
    assert note.startswith("engine.config: state_dict_type=FULL_STATE_DICT: checkpoints are sharded, and every engine")
    assert read_yaml(run.path / "config.yaml")["engine"] == {
        "kind": "fsdp",
        "reshard": True,
        "layers": ["LlamaDecoderLayer"],
    }
    run.stop_after(2, 2)
    for engine in (ZERO, FSDP):
        change_engine(run, 4, engine)
        run.stop_after(4, 1)
    change_engine(run, 2, ZERO)
    assert run.go(2) == [0, 0], run.log()
    assert [step for (step,) in run.history()] == list(range(1, 61))
