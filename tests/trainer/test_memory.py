"""A rank without memory: whichever it is, it says so before it leaves."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from msgspec.structs import replace

from tests.trainer.ranks import Run
from trainer import config, memory
from trainer.engines.ddp.settings import Ddp
from trainer.engines.deepspeed.settings import Deepspeed
from trainer.engines.fsdp.settings import Fsdp
from trainer.layout import BatchLayout
from trainer.memory import Held
from trainer.schema import Lora, TrainConfig
from trainer.shape import Model

NewRun = Callable[..., Run]


def test_a_rank_that_asks_for_more_than_there_is_tells_it(new_run: NewRun) -> None:
    run = new_run("run", evaluation={"every": 0})
    run.start_with_fault(2, "step", 1, "oom")
    assert run.wait()[1] == 1, run.log(1)
    (told,) = run.events("oom")
    assert (told["rank"], told["phase"], told["device"], told["epoch"]) == (1, "step", "cpu", 1)
    assert told["allocated"] > 10**7 and "can't allocate memory" in told["error"]
    assert "activations and more" in told["held"]
    assert told["advice"].endswith("GB, which is not enough by itself")  # a petabyte was asked for


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
    settings = config.read(run.path / "config.yaml")
    memory.note_out_of_memory(error, runtime, "model", settings)  # type: ignore[arg-type]
    assert [(event["device"], event["rank"]) for event in run.events("oom")] == ([(device, 3)] if device else [])


@pytest.mark.parametrize(
    ("error", "size"),
    [
        ("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79 GiB", 5 * 2**29),
        ("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4096 bytes.", 4096),
        ("out of memory", 0),
    ],
)
def test_what_was_asked_for(error: str, size: int) -> None:
    assert memory.wanted(error) == size


@pytest.mark.parametrize(
    ("engine", "train", "micro", "needed", "said"),
    [
        (Ddp(), {}, 4, 1, "train.micro_batch_size=2 would save about 20.0 GB"),
        (Ddp(), {}, 4, 25, "train.gradient_checkpointing=true would save about 30.0 GB"),
        (Ddp(), {"gradient_checkpointing": True}, 1, 25, "engine.kind=fsdp would save about 30.0 GB"),
        (Fsdp(), {"gradient_checkpointing": True}, 1, 35, "engine.offload=true would save about 40.0 GB"),
        (Fsdp(offload=True), {"gradient_checkpointing": True}, 1, 1, "a new run with optim.name=adamw_8bit"),
        (Ddp(), {}, 4, 99, "train.gradient_checkpointing=true would save about 30.0 GB, which is not enough by itself"),
        (Deepspeed({}), {"gradient_checkpointing": True}, 1, 1, "spread the model over more GPUs"),
    ],
)
def test_the_cheapest_setting_that_would_fit(
    new_run: NewRun, engine: Ddp | Fsdp | Deepspeed, train: dict[str, Any], micro: int, needed: int, said: str
) -> None:
    settings = config.read(new_run("run", train=train).path / "config.yaml")
    settings = TrainConfig("x", settings.model, settings.data, settings.train, settings.optim, engine=engine)
    held = Held(weights=10 * 10**9, gradients=10 * 10**9, moments=20 * 10**9, total=80 * 10**9)
    assert memory.advice(settings, BatchLayout(micro, 1, 4), held, needed * 10**9).startswith(said)


@pytest.mark.parametrize(
    ("quantize", "precision", "said"),
    [
        ("nf4", "master32", "a new run with train.precision=bf16 would save about 2.0 GB"),  # of what is trained
        ("nf4", "bf16", "a new run with optim.name=adamw_8bit would save about 1.4 GB"),
        (None, "bf16", "engine.kind=fsdp would save about 9.8 GB"),
    ],
)
def test_what_helps_beside_frozen_weights(new_run: NewRun, quantize: Any, precision: str, said: str) -> None:
    settings = config.read(new_run("run", train={"precision": precision}).path / "config.yaml")
    settings = replace(settings, model=Model(path="folder"), lora=Lora(quantize=quantize))
    held = Held(weights=10 * 10**9, gradients=10**9, moments=2 * 10**9, total=13 * 10**9)
    assert memory.advice(settings, BatchLayout(1, 1, 4), held, 99 * 10**9).startswith(said)
    if quantize is None:
        alone = memory.advice(settings, BatchLayout(1, 1, 1), held, 5 * 10**9)
        assert alone == "a new run with lora.quantize=nf4 would save about 5.4 GB"
