"""The engines beside each other: the losses of plain PyTorch and of transformers' Trainer, bit-identical resumes, and
checkpoints that all of them read."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from settings import merge
from tests.trainer.ranks import ROOT, Run, write_run
from trainer import config
from trainer.data.batches import Batches, MicroBatch
from trainer.data.prepared import Prepared
from trainer.layout import BatchLayout
from trainer.model.weights import build
from trainer.schedule import learning_rate

NewRun = Callable[..., Run]
DDP, FSDP = {"kind": "ddp"}, {"kind": "fsdp"}
STEPS = 50


def zero(stage: int, **more: Any) -> dict[str, Any]:
    return {"kind": "deepspeed", "config": {"zero_optimization": {"stage": stage, **more}}}


OFFLOAD = {"offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}}
SHAPE: dict[str, Any] = {
    "model": {"config": {"attention_dropout": 0.0}},
    "train": {"steps": STEPS},
    "optim": {"lr": 1e-3},
}


@dataclass(frozen=True)
class Case:
    engine: dict[str, Any]
    world: int
    train: dict[str, Any] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        kind, *settings = self.engine.values()
        return f"{kind}@{self.world} {settings or ''} {self.train or ''}"


BY_DAY = [
    Case(zero(3, **OFFLOAD), 2),
    Case({**FSDP, "hybrid": True}, 4, variables={"LOCAL_WORLD_SIZE": "2"}),
    Case({**FSDP, "offload": True}, 2, {"gradient_checkpointing": {"every_k": 2}}),
]
BY_NIGHT = [
    *(Case(engine, world) for engine in (DDP, FSDP) for world in (1, 2, 4)),
    *(Case(zero(stage), world) for stage in range(4) for world in (1, 2, 4)),
    *(Case(zero(3, **OFFLOAD), world) for world in (1, 4)),
    Case(zero(2), 3),
    Case({**FSDP, "hybrid": True, "offload": True}, 4, variables={"LOCAL_WORLD_SIZE": "2"}),
    *(
        Case(engine, 2, {"gradient_checkpointing": True, "activation_offload": True})
        for engine in (DDP, FSDP, zero(2), zero(3))
    ),
    *(Case(engine, 2, {"gradient_checkpointing": "selective"}) for engine in (DDP, FSDP, zero(2))),
    Case({**FSDP, "reduce_each": True}, 2, {"micro_batch_size": 2}),
    *(Case(engine, 2, {"compile": True}) for engine in (DDP, FSDP, zero(2))),
    Case(FSDP, 2, {"compile": True, "gradient_checkpointing": True}),
]


@pytest.mark.parametrize(
    "case", [*BY_DAY, *(pytest.param(case, marks=pytest.mark.nightly) for case in BY_NIGHT)], ids=str
)
def test_cut_it_is_bit_identical_and_has_the_losses_of_plain_pytorch(
    new_run: NewRun, case: Case, plain: list[float]
) -> None:
    shape = {**SHAPE, "engine": case.engine, "train": {**SHAPE["train"], **case.train}}
    whole, cut = new_run("whole", **shape), new_run("cut", **shape)
    assert whole.go(case.world, **case.variables) == [0] * case.world, whole.log()
    cut.stop_after(case.world, 3, **case.variables)
    assert cut.go(case.world, **case.variables) == [0] * case.world, cut.log()
    assert cut.history("loss", "grad_norm", "hash") == whole.history("loss", "grad_norm", "hash")
    assert cut.done()["sha256"] == whole.done()["sha256"]
    assert [loss for _, loss in whole.history("loss")] == pytest.approx(plain, rel=1e-5)


ON_DISK: list[Any] = [
    ({}, 1),
    ({"offload_optimizer": {"buffer_count": 12, "pipeline_read": True, "pipeline_write": True}}, 2),
    ({"offload_param": {"max_in_cpu": 0, "buffer_size": 20_000, "buffer_count": 40}}, 2),
]


def swapping(disk: Path, more: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Sub-groups of several sizes, one of them too small to be swapped."""
    nvme = {what: {"device": "nvme", "nvme_path": str(disk), **part} for what, part in more.items()}
    engine = zero(3, sub_group_size=4000, stage3_param_persistence_threshold=0, **nvme)
    return merge(engine, {"config": {"aio": {"block_size": 1024}}})


@pytest.fixture(scope="module")
def async_io() -> None:
    """Its build takes minutes: at night alone."""
    code = "from trainer.engines.deepspeed.swapped import load_async_io; load_async_io()"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "DS_ACCELERATOR": "cpu"}, cwd=ROOT)


def swaps(run: Run) -> list[str]:
    return ["tests.trainer.with_small_swaps", str(run.path / "config.yaml")]


@pytest.mark.nightly
@pytest.mark.usefixtures("async_io")
def test_what_lies_on_a_disk_comes_from_another_engine_and_goes_to_one(
    new_run: NewRun, plain: list[float], tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    run = new_run("run", **SHAPE, engine=FSDP)
    run.stop_after(2, 2)
    run.change_engine(swapping(disk, {"offload_optimizer": {}}))
    run.stop_after(2, 2, argv=swaps(run))
    assert not any(disk.iterdir())
    run.change_engine(FSDP)
    assert run.go(2) == [0, 0], run.log()
    assert [loss for _, loss in run.history("loss")] == pytest.approx(plain, rel=1e-5)


@pytest.mark.nightly
@pytest.mark.usefixtures("async_io")
@pytest.mark.parametrize(("more", "world"), ON_DISK)
def test_cut_it_is_bit_identical_with_its_state_on_a_disk(
    new_run: NewRun, plain: list[float], tmp_path: Path, more: dict[str, Any], world: int
) -> None:
    disk = tmp_path / "disk"
    shape = {**SHAPE, "engine": swapping(disk, {"offload_optimizer": {}, **more})}
    whole, cut = new_run("whole", **shape), new_run("cut", **shape)
    assert whole.go(world, swaps(whole)) == [0] * world, whole.log()
    cut.start(world, swaps(cut))
    cut.reaches(2)
    cut.kill()
    assert len(list(disk.glob("outlast-cut-*-attempt-0001-rank-*"))) == world
    checkpoint = cut.path / "checkpoints" / cut.stop_after(world, 3, argv=swaps(cut))
    assert not any(disk.iterdir())
    check = ["tests.trainer.check_loaded", str(cut.path / "config.yaml"), str(checkpoint)]
    for engine, small in ((FSDP, []), (shape["engine"], ["tests.trainer.with_small_swaps"])):
        cut.change_engine(engine)
        assert cut.go(world, argv=[*small, *check]) == [0] * world, cut.log()
    assert cut.go(world, swaps(cut)) == [0] * world, cut.log()
    assert not any(disk.iterdir())
    assert cut.history("loss", "grad_norm", "hash") == whole.history("loss", "grad_norm", "hash")
    assert cut.done()["sha256"] == whole.done()["sha256"]
    assert [loss for _, loss in whole.history("loss")] == pytest.approx(plain, rel=1e-5)


LEAN: list[Any] = [
    (DDP, 2, "bf16", "adamw"),
    pytest.param(FSDP, 2, "adam32", "adamw", marks=pytest.mark.nightly),
    pytest.param(DDP, 3, "adam32", "adamw_8bit", marks=pytest.mark.nightly),
    pytest.param(FSDP, 4, "bf16", "adamw_8bit", marks=pytest.mark.nightly),
    pytest.param({**FSDP, "offload": True}, 2, "master32", "adamw_8bit", marks=pytest.mark.nightly),
]


@pytest.mark.parametrize(("engine", "world", "precision", "name"), LEAN)
def test_with_less_memory_it_learns_resumes_to_the_bit_and_moves_to_another_engine(
    new_run: NewRun, plain: list[float], engine: dict[str, Any], world: int, precision: str, name: str
) -> None:
    train = {**SHAPE["train"], "precision": precision}
    shape = {**SHAPE, "engine": engine, "train": train, "optim": {**SHAPE["optim"], "name": name}}
    whole, cut = new_run("whole", **shape), new_run("cut", **shape)
    assert whole.go(world) == [0] * world, whole.log()
    checkpoint = cut.path / "checkpoints" / cut.stop_after(world, 3)
    for other, size in ((FSDP, 3), (DDP, 1)):
        cut.change_engine(other)
        check = ["tests.trainer.check_loaded", str(cut.path / "config.yaml"), str(checkpoint)]
        assert cut.go(size, argv=check) == [0] * size, cut.log()
    cut.change_engine(engine)
    assert cut.go(world) == [0] * world, cut.log()
    assert cut.history("loss", "grad_norm", "hash") == whole.history("loss", "grad_norm", "hash")
    assert cut.done()["sha256"] == whole.done()["sha256"]
    losses = [loss for _, loss in whole.history("loss")]
    assert losses[-1] == pytest.approx(plain[-1], rel=0.01) and plain[-1] < 0.9 * plain[0]


def test_transformers_trainer_has_the_same_losses(recipe: Run, plain: list[float]) -> None:
    settings, batches = read(recipe)
    trainer = Trainer(settings, [batches.get(step).micro_batches[0] for step in range(STEPS)])
    assert trainer.losses() == pytest.approx(plain, rel=1e-5)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, zygote: Any) -> Run:
    """A run of one process and a step: its prepared data is what the others are given."""
    run = write_run(tmp_path_factory.mktemp("plain") / "run", zygote, **SHAPE)
    one = write_run(run.path.parent / "one", zygote, **{**SHAPE, "train": {"steps": 1}})
    assert one.go(1) == [0], one.log()
    return run


@pytest.fixture(scope="module")
def plain(recipe: Run) -> list[float]:
    """Losses of a loop in plain PyTorch over the same global batches, with nothing of ours but their tokens."""
    settings, batches = read(recipe)
    model: Any = build(settings.model, settings.train.seed)
    model.set_attn_implementation("sdpa")
    model.train()
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    optim = settings.optim
    adamw = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": optim.weight_decay}, {"params": others, "weight_decay": 0.0}],
        betas=optim.betas,
        eps=optim.eps,
    )
    losses = []
    for step in range(STEPS):
        batch = batches.get(step).micro_batches[0]
        logits = model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False).logits
        loss = functional.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), ignore_index=-100)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), optim.clip)
        for group in adamw.param_groups:
            group["lr"] = learning_rate(step, STEPS, optim)
        adamw.step()
        adamw.zero_grad()
        losses.append(loss.item())
    return losses


def read(run: Run) -> tuple[config.TrainConfig, Batches]:
    """A run's settings, and its global batches as one micro batch each."""
    settings = config.read(run.path / "config.yaml")
    folder = max(run.path.parent.glob(".prepared/*"), key=lambda path: (path / "tokens.bin").stat().st_size)
    total = settings.train.global_batch_size
    return settings, Batches(Prepared.open(folder), BatchLayout(total, 1, 1), settings.train.seed, 0)


class Trainer:
    """transformers' own, on the same batches with the same optimizer and rates."""

    def __init__(self, settings: config.TrainConfig, batches: list[MicroBatch]) -> None:
        self.settings, self.batches = settings, batches

    def losses(self) -> list[float]:
        import tempfile

        import transformers

        optim, rows = self.settings.optim, [row for batch in self.batches for row in _rows(batch)]
        model: Any = build(self.settings.model, self.settings.train.seed)
        model.set_attn_implementation("sdpa")
        groups = [
            {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": optim.weight_decay},
            {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
        ]
        adamw = torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps)
        rates = torch.optim.lr_scheduler.LambdaLR(adamw, lambda step: learning_rate(step, STEPS, optim) / optim.lr)
        with tempfile.TemporaryDirectory() as folder:
            arguments = transformers.TrainingArguments(
                folder,
                per_device_train_batch_size=self.settings.train.global_batch_size,
                max_steps=STEPS,
                max_grad_norm=optim.clip,
                logging_steps=1,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                use_cpu=True,
                bf16=False,
            )
            trainer = transformers.Trainer(model, arguments, train_dataset=rows, optimizers=(adamw, rates))
            trainer._get_train_sampler = lambda *_: torch.utils.data.SequentialSampler(rows)
            trainer.train()
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def _rows(batch: MicroBatch) -> list[dict[str, Any]]:
    """Sequences as the Trainer wants them: it shifts the labels itself, so the last target needs an input more."""
    rows = []
    for tokens, labels, positions in zip(batch.input_ids, batch.labels, batch.position_ids, strict=True):
        rows.append(
            {
                "input_ids": [*tokens.tolist(), 0],
                "labels": [-100, *labels.tolist()],
                "position_ids": [*positions.tolist(), 0],
            }
        )
    return rows


def test_every_engine_reads_what_another_one_saved(new_run: NewRun) -> None:
    run = new_run("run", engine=zero(2))
    for engine, world, others in (
        (zero(2), 2, ((FSDP, 3), (zero(3), 3), (DDP, 1))),
        (zero(3), 3, ((zero(1), 2), (zero(0), 2))),
        (FSDP, 2, ((zero(3), 2), (zero(2), 3))),
    ):
        run.change_engine(engine)
        checkpoint = run.path / "checkpoints" / run.stop_after(world, 2)
        for other, size in others:
            run.change_engine(other)
            check = ["tests.trainer.check_loaded", str(run.path / "config.yaml"), str(checkpoint)]
            assert run.go(size, argv=check) == [0] * size, run.log()
    run.change_engine(zero(3))
    assert run.go(2) == [0, 0], run.log()


def test_in_bf16_weights_have_fp32_masters(new_run: NewRun) -> None:
    run = new_run("run", train={"steps": 8, "precision": "master32"}, engine=zero(3), evaluation={"every": 0})
    checkpoint = run.path / "checkpoints" / run.stop_after(2, 2)
    check = ["tests.trainer.check_loaded", str(run.path / "config.yaml"), str(checkpoint)]
    for engine in (zero(1), FSDP):
        run.change_engine(engine)
        assert run.go(2, argv=check) == [0, 0], run.log()
    assert run.go(2) == [0, 0], run.log()


@pytest.mark.parametrize("engine", [DDP, FSDP], ids=str)
@pytest.mark.parametrize(("precision", "name"), [("fp32", "adamw"), ("bf16", "adamw_8bit")])
def test_a_step_is_launched_without_a_look_at_the_device(
    new_run: NewRun, engine: dict[str, Any], precision: str, name: str
) -> None:
    train = {"steps": 3, "global_batch_size": 12, "micro_batch_size": 3, "precision": precision}
    run = new_run("run", engine=engine, train=train, optim={"name": name}, evaluation={"every": 0})
    assert run.go(2, argv=["tests.trainer.host_reads", str(run.path / "config.yaml")]) == [0, 0], run.log()
    assert [event["where"] for event in run.events("reads")] == [[], [], []]
