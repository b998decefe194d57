"""The plan beside what runs have measured, and what is kept of them for the next plan."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import launch
from benchmarks.plan import hours
from benchmarks.plan.cases import Case
from benchmarks.rows import Row
from settings import ConfigError, dump_yaml
from tests.trainer.ranks import Run
from trainer.plan import batch_layout, calibrated, measured
from trainer.plan.devices import kind_of, reached
from trainer.plan.measured import calibrate, compared, of_run
from trainer.plan.time import seconds_at

CONFIG = {
    "model": {"config": {"model_type": "llama", "hidden_size": 2048, "num_hidden_layers": 16}, "tokenizer": "."},
    "data": {"train": ["x"], "seq_len": 2048},
    "train": {"steps": 100, "global_batch_size": 16, "gradient_checkpointing": True},
    "optim": {"lr": 1e-5},
    "engine": {"kind": "fsdp"},
}
H100 = "NVIDIA H100 80GB HBM3"


def line(event: str, epoch: int, step: int, **values: Any) -> dict[str, Any]:
    return {"event": event, "epoch": epoch, "step": step, **values}


def begun(epoch: int, step: int, world: int = 8, device: str = H100) -> dict[str, Any]:
    return line("resume", epoch, step, world_size=world, local_world_size=min(8, world), device=device)


def steps(epoch: int, first: int, last: int, seconds: float, memory: float = 40e9) -> list[dict[str, Any]]:
    told = {"seconds": seconds, "data_wait_seconds": 0.25, "memory_bytes": memory, "mfu": 0.4}
    return [line("step", epoch, step, **told) for step in range(first, last + 1)]


def written(folder: Path, events: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(dump_yaml({"name": folder.name, **CONFIG}))
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return folder


def test_steps_count_once_and_those_of_other_ranks_do_not(tmp_path: Path) -> None:
    events = [begun(1, 0, world=16), *steps(1, 1, 9, 9.0), begun(2, 9), *steps(2, 10, 20, 1.75, 50e9)]
    events += [begun(3, 15), *steps(3, 16, 30, 1.75)]
    found = of_run(written(tmp_path / "run", events))
    assert (found.device, found.nodes, found.gpus, found.steps) == ("h100-80", 1, 8, 21)
    assert found.step == 2.0 and found.seconds == 42.0 and found.memory == 50e9 and found.mfu == 0.4


def test_what_cannot_be_compared_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, events, why in (
        ("old", [line("resume", 1, 0), *steps(1, 1, 9, 1.0)], "no attempt has told its device"),
        ("short", [begun(1, 0), *steps(1, 1, 4, 1.0)], "4 steps on these ranks: fewer than 5"),
        ("strange", [begun(1, 0, device="TPU v9"), *steps(1, 1, 9, 1.0)], "does not know the device TPU v9"),
        ("cpu", [begun(1, 0, device="cpu"), *steps(1, 1, 9, 1.0)], "devices.yaml does not know it"),
    ):
        assert measured.main([str(written(tmp_path / name, events))]) == 78
        said = capsys.readouterr().err
        assert why in said and said.count("\n") == 1


def test_a_run_that_is_kept_is_planned_as_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = written(tmp_path / "run", [begun(1, 0), *steps(1, 1, 60, 1.75)])
    before = {row.what: row for row in compared(run)[0]}
    assert before["step"].error is not None and abs(before["step"].error) > 0.2, "by published figures"
    size = before["memory of a rank"]
    assert size.measured == pytest.approx(40e9 / 2**30) and size.planned > 1
    said = calibrate("run", tmp_path)
    assert said.startswith(f"{tmp_path / 'devices.yaml'}: h100-80 reaches ")
    after, source = compared(run)
    assert "60 steps of the run run" in source
    errors = {row.what: row.error for row in after}
    assert errors["step"] == pytest.approx(0, abs=1e-3) and errors["60 steps"] == pytest.approx(0, abs=1e-3)
    assert measured.main([str(run), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [row["what"] for row in told["rows"]] == ["memory of a rank", "step", "60 steps", "MFU"]
    assert measured.main([str(run)]) == 0
    assert ["step", "2", "2", "s"] in [shown.split()[:4] for shown in capsys.readouterr().out.splitlines()]
    calibrate("run", tmp_path)
    assert len(calibrated.device("h100-80", tmp_path).measured) == 1, "the same source does not stand twice"


def test_the_nearest_in_size_is_taken_before_what_is_published(tmp_path: Path) -> None:
    lines = [calibrated.Line(billions=size, mfu=mfu, source=f"{size}") for size, mfu in ((1.0, 0.3), (8.0, 0.5))]
    calibrated.keep(tmp_path, "h100-80", lines, None)
    device = calibrated.device("h100-80", tmp_path)
    assert reached(device, 2e9, 8).mfu == 0.3 and reached(device, 70e9, 8).mfu == 0.5 and reached(device, 2e9, 8).own
    assert not reached(calibrated.device("h200", tmp_path), 2e9, 8).own
    calibrated.keep(tmp_path, "h100-80", [calibrated.Line(3.0, 0.6, "alone", ranks=1)], None)
    device = calibrated.device("h100-80", tmp_path)
    assert reached(device, 4e9, 1).mfu == 0.6 and reached(device, 4e9, 16).mfu == 0.5
    (tmp_path / "devices.yaml").write_text("devices: {h100-80: {reached: [{billions: 1, mfu: -1, source: x}]}}")
    with pytest.raises(ConfigError, match=r"devices.yaml: .*mfu"):
        calibrated.device("h200", tmp_path)


def test_a_file_of_benchmarks_gpu(tmp_path: Path) -> None:
    def row(name: str, figure: float | None, recompute: bool = False) -> dict[str, Any]:
        note = f"master32, ddp, gradient checkpointing {recompute}; 1.0 s"
        return {"row": "B1", "name": f"{name}: MFU", "figure": figure, "note": note}

    rows = [
        row("1B T=4096", 0.5),
        row("1B T=4096, fsdp", 0.51),
        row("3B T=4096", None),
        row("8B 16N T=8192", 0.4, True),
    ]
    record = {"mode": "full", "device": {"name": "NVIDIA H200"}, "rows": rows}
    file = tmp_path / "gpu.json"
    file.write_text(json.dumps(record))
    assert "h200 reaches 51.0% for 1B:" in calibrate(str(file), tmp_path)
    assert [line.mfu for line in calibrated.device("h200", tmp_path).measured] == [0.51]
    for change, why in (
        ({"mode": "reduced, CPU"}, "a reduced run measures nothing"),
        ({"rows": rows[2:]}, "it has no MFU of NVIDIA H200"),
        ({"device": {}}, "no record of benchmarks.gpu"),
    ):
        file.write_text(json.dumps({**record, **change}))
        with pytest.raises(ConfigError, match=why):
            calibrate(str(file), tmp_path)
    with pytest.raises(ConfigError, match="there is no such file"):
        calibrate("gone", tmp_path)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (H100, "h100-80"),
        ("NVIDIA A100-SXM4-40GB", "a100-40"),
        ("NVIDIA A100 80GB PCIe", "a100-80"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA L40S", "l40s"),
        ("AMD Instinct MI300X", "mi300x"),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA A100", None),
        ("cpu", "cpu"),
    ],
)
def test_a_device_by_the_name_that_it_gives_itself(name: str, kind: str | None) -> None:
    assert kind_of(name) == kind


def test_ranks_on_a_cpu_are_planned_by_a_run_of_theirs(
    new_run: Callable[..., Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = new_run("run", train={"steps": 12})
    assert run.go(2) == [0, 0], run.log()
    words = ["plan", str(run.path / "config.yaml"), "--runs-dir", str(tmp_path), "--nodes", "1", "--gpus", "2"]
    words += ["--gpus-of", "cpu"]
    assert launch.main(words) == 78
    assert "launch.py plan --calibrate RUN" in capsys.readouterr().err
    assert launch.main(["plan", "--calibrate", "run", "--runs-dir", str(tmp_path)]) == 0
    found = of_run(run.path)
    assert (found.device, found.gpus, found.steps) == ("cpu", 2, 12)
    capsys.readouterr()
    assert launch.main([*words, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["plan"]["step_seconds"] == pytest.approx(found.step, rel=1e-3)
    assert "CUDA" not in said["plan"]["gpu_parts"] and "12 steps of the run run" in said["plan"]["mfu_source"]


def test_the_benchmark_judges_the_error_of_planned_hours(monkeypatch: pytest.MonkeyPatch) -> None:
    def at(slower: dict[int, float]) -> list[Row]:
        """Trainings at one pace, but for that of these numbers of ranks in what is planned."""

        def train(case: Case, run: Path) -> None:
            model, layout = case.model, batch_layout(case.settings.train, case.ranks)
            step = seconds_at(0.3, model, case.settings, layout, calibrated.plain("cpu"))
            step *= slower.get(case.ranks, 1.0) if run.name.startswith("run") else 1.0
            told = {"seconds": step, "data_wait_seconds": 0.0, "memory_bytes": 1e9}
            events = [begun(1, 0, case.ranks, "cpu"), *(line("step", 1, number, **told) for number in range(1, 9))]
            (run / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))

        monkeypatch.setattr(hours, "train", train)
        return hours.measure(quick=False)

    rows = at({})
    assert len(rows) == 1 + len(hours.PLANNED) and rows[-1].met and rows[-1].outlast == pytest.approx(0, abs=0.1)
    rows = at({1: 0.5, 2: 1.25})
    assert [row.name.rsplit(" ", 1)[1] for row in rows[:-1]] == ["+100.0%"] * 3 + ["-20.0%"] * 3
    assert rows[-1].met is False and rows[-1].outlast == pytest.approx(60, abs=0.1) and rows[-1].cause
