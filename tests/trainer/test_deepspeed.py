"""DeepSpeed's stages: the losses of every other engine, bit-identical resumes, and checkpoints that all engines read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.trainer.ranks import Run

NewRun = Callable[..., Run]
DDP, FSDP = {"kind": "ddp"}, {"kind": "fsdp"}


def zero(stage: int, **more: Any) -> dict[str, Any]:
    return {"kind": "deepspeed", "config": {"zero_optimization": {"stage": stage, **more}}}


OFFLOAD = {"offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}}


@pytest.mark.parametrize(
    ("engine", "world"),
    [
        (zero(3, **OFFLOAD), 2),
        pytest.param(zero(2), 3, marks=pytest.mark.nightly),
        pytest.param(zero(0), 2, marks=pytest.mark.nightly),
        pytest.param(zero(1), 2, marks=pytest.mark.nightly),
        pytest.param(zero(3), 2, marks=pytest.mark.nightly),
        pytest.param(zero(2), 4, marks=pytest.mark.nightly),
        pytest.param(zero(3), 1, marks=pytest.mark.nightly),
        pytest.param(zero(3), 4, marks=pytest.mark.nightly),
    ],
    ids=str,
)
def test_cut_it_is_bit_identical_and_has_the_losses_of_ddp(
    new_run: NewRun, engine: dict[str, Any], world: int, ddp: Run
) -> None:
    shape = {"model": {"config": {"attention_dropout": 0.0}}, "engine": engine}
    whole, cut = new_run("whole", **shape), new_run("cut", **shape)
    assert whole.go(world) == [0] * world, whole.log()
    cut.stop_after(world, 3)
    assert cut.go(world) == [0] * world, cut.log()
    assert cut.history("loss", "grad_norm", "hash") == whole.history("loss", "grad_norm", "hash")
    assert cut.done()["sha256"] == whole.done()["sha256"]
    for ours, theirs in zip(whole.history("loss"), ddp.history("loss"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    assert whole.history("hash", "tokens") == ddp.history("hash", "tokens")


@pytest.fixture(scope="module")
def ddp(tmp_path_factory: pytest.TempPathFactory, zygote: Any) -> Run:
    """One process, no engine's wrapping: what all others are compared with."""
    from tests.trainer.ranks import write_run

    run = write_run(tmp_path_factory.mktemp("ddp") / "run", zygote, model={"config": {"attention_dropout": 0.0}})
    assert run.go(1) == [0], run.log()
    return run


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
    run = new_run("run", train={"steps": 8, "precision": "bf16"}, engine=zero(3), evaluation={"every": 0})
    checkpoint = run.path / "checkpoints" / run.stop_after(2, 2)
    check = ["tests.trainer.check_loaded", str(run.path / "config.yaml"), str(checkpoint)]
    for engine in (zero(1), FSDP):
        run.change_engine(engine)
        assert run.go(2, argv=check) == [0, 0], run.log()
    assert run.go(2) == [0, 0], run.log()
