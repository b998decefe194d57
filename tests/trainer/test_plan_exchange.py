"""What ranks send each other, and the time that it takes by the user's own runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trainer.test_plan import LLAMA_8B, recipe, zero
from tests.trainer.test_plan_beside_runs import begun, steps, written
from trainer.engines.ddp.settings import Ddp
from trainer.engines.fsdp.settings import Fsdp
from trainer.plan import batch_layout, calibrated
from trainer.plan.architecture import read
from trainer.plan.measured import calibrate, compared
from trainer.plan.state import Ranks, sent
from trainer.plan.time import pace, time

MODEL = read(LLAMA_8B)
N = MODEL.parameters


def bytes_sent(engine: object, world: int, local: int = 8, micro: int = 1, precision: str = "master32") -> float:
    """In parameters."""
    settings = recipe(engine, global_batch_size=64, micro_batch_size=micro, precision=precision)
    return sent(MODEL, settings, Ranks.of(batch_layout(settings.train, world), local)) / N


def test_what_each_engine_sends() -> None:
    once, twice = 64 // 4, 64 // 8  # micro batches of a step on 4 ranks
    for engine, micro, expected in (
        (Ddp(), 1, 2 * 4),
        (Fsdp(), 4, 4 * 2 * 2 + 4),
        (Fsdp(reshard=False), 4, 4 * 2 + 4),
        (Fsdp(reduce_each=True), 4, 4 * 2 * 2 + 4 * 4),
        (zero(0), 4, 2 * 2),
        (zero(1), 4, 2 + 2),
        (zero(2), 4, 4 * 2 + 2),
        (zero(3), 4, 4 * 2 * 2 + 4 * 2),
        (Fsdp(), 1, once * 2 * 2 + 4),
        (Fsdp(), 2, twice * 2 * 2 + 4),
    ):
        assert bytes_sent(engine, 4, micro=micro) == pytest.approx(3 / 4 * expected), (engine, micro)
        assert bytes_sent(engine, 1, micro=micro) == 0
    assert bytes_sent(Fsdp(), 4, micro=4, precision="fp32") == pytest.approx(3 / 4 * (4 * 2 * 4 + 4))
    hybrid = bytes_sent(Fsdp(hybrid=True), 16, micro=1)
    assert hybrid == pytest.approx(7 / 8 * (4 * 2 * 2 + 4) + 2 * 1 / 2 * 4 / 8)
    assert hybrid < bytes_sent(Fsdp(), 16, micro=1)


def line(mfu: float, ranks: int, **more: float) -> calibrated.Line:
    return calibrated.Line(billions=1.0, mfu=mfu, source=f"{ranks} ranks", ranks=ranks, **more)  # type: ignore[arg-type]


def test_it_is_told_apart_from_computing_where_a_rank_alone_was_measured_too(tmp_path: Path) -> None:
    calibrated.keep(tmp_path, "h100-80", [line(0.4, 8, step=2.0, sent=8e9)], None)
    found, rate = pace(calibrated.device("h100-80", tmp_path), 1e9, 8)
    assert (found.mfu, rate) == (0.4, 0), "nothing says what a rank does alone"
    calibrated.keep(tmp_path, "h100-80", [line(0.5, 1)], None)
    device = calibrated.device("h100-80", tmp_path)
    found, rate = pace(device, 1e9, 8)
    assert found.mfu == 0.5 and rate == pytest.approx(8e9 / (2.0 * 0.2))
    assert pace(device, 1e9, 1)[1] == 0
    settings = recipe(Ddp(), global_batch_size=64)
    plans = [time(MODEL, settings, batch_layout(settings.train, n), 1, device, 10) for n in (1, 8)]
    computing = plans[0].step / 8
    assert plans[1].step == pytest.approx(computing + 7 / 8 * 2 * 4 * N / rate) and plans[1].offload == 1
    assert plans[1].mfu < plans[0].mfu == pytest.approx(0.5) and "GB/s between ranks" in plans[1].source
    calibrated.keep(tmp_path, "h100-80", [line(0.3, 1)], None)
    assert pace(calibrated.device("h100-80", tmp_path), 1e9, 8)[1] == 0, "several are no slower than one"


def test_a_run_of_several_ranks_and_one_alone_are_kept_and_planned_as_they_were(tmp_path: Path) -> None:
    runs = {
        world: written(tmp_path / f"at-{world}", [begun(1, 0, world), *steps(1, 1, 60, each)])
        for world, each in ((1, 7.75), (8, 1.75))
    }
    for run in runs.values():
        calibrate(run.name, tmp_path)
    for world, run in runs.items():
        step = next(row for row in compared(run)[0] if row.what == "step")
        assert step.measured == (8.0 if world == 1 else 2.0) and step.error == pytest.approx(0, abs=1e-3)
    assert "GB/s between ranks" in compared(runs[8])[1]
