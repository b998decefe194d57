"""A rank without memory: whichever it is, it says so before it leaves."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from tests.trainer.ranks import Run
from trainer import memory

NewRun = Callable[..., Run]


def test_a_rank_that_asks_for_more_than_there_is_tells_it(new_run: NewRun) -> None:
    run = new_run("run", evaluation={"every": 0})
    run.start_with_fault(2, "step", 1, "oom")
    assert run.wait()[1] == 1, run.log(1)
    (told,) = run.events("oom")
    assert (told["rank"], told["phase"], told["device"], told["epoch"]) == (1, "step", "cpu", 1)
    assert told["allocated"] > 10**7 and "can't allocate memory" in told["error"]


@pytest.mark.parametrize(
    ("error", "device"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "cuda"),
        (MemoryError(), "cpu"),
        (RuntimeError("Connection closed by peer"), None),
    ],
)
def test_which_errors_mean_it(new_run: NewRun, error: Exception, device: str | None) -> None:
    run = new_run("run")
    runtime = SimpleNamespace(rank=3, run_dir=run.path, epoch=2)
    memory.note_out_of_memory(error, runtime, "model")  # type: ignore[arg-type]
    assert [(event["device"], event["rank"]) for event in run.events("oom")] == ([(device, 3)] if device else [])
