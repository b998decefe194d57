"""The GPU benchmark: its reduced form runs whole, and whatever becomes of a part, the record says it."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import __main__ as bench
from benchmarks.gpu.child import Broken, Tell, told
from benchmarks.gpu.clocks import Clocks, devices
from benchmarks.gpu.figures import REDUCED, Figure, figure_of, tree
from benchmarks.gpu.packing import cut
from settings import ConfigError
from trainer import recipe

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "recipes" / "llama8b_2x8.yaml"
KEYS = {"row", "name", "figure", "unit", "goal", "met", "peer", "sm_mhz", "watts", "part"}


def record_of(file: Path, *argv: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.gpu", "--out", str(file), "--scratch", str(file.parent), *argv]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    )
    assert done.returncode == 0, done.stderr
    assert os.listdir(file.parent) == [file.name], "checkpoints and logs are gone"
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def check(record: dict[str, Any], rows: set[str]) -> None:
    assert record["mode"] == REDUCED and record["device"]["name"] == "CPU"
    assert record["versions"].keys() >= {"outlast", "python", "torch", "transformers"}
    assert record["limits"].keys() == {"gemm_bf16", "copy", "to_host", "from_host"}
    assert {row["row"] for row in record["rows"]} == rows
    for row in record["rows"]:
        assert row.keys() >= KEYS
        assert row["figure"] is not None or row["reason"], row
        assert row["met"] is None, "of tiny shapes nothing is met"
        assert "did not end" not in row.get("reason", "") and "process ended" not in row.get("reason", ""), row


def test_two_rows_in_the_reduced_form(tmp_path: Path) -> None:
    check(record_of(tmp_path / "gpu.json", "--only", "B10"), {"B10"})
    check(record_of(tmp_path / "gpu.json", "--only", "B4"), {"B4", "B10"})  # what stands is kept


@pytest.mark.nightly
def test_every_row_in_the_reduced_form(tmp_path: Path) -> None:
    record = record_of(tmp_path / "gpu.json", "--budget", "200")
    check(record, {f"B{number}" for number in range(1, 11)})
    assert {row["part"] for row in record["rows"]} == {part.name for part in bench.PARTS}
    without = [row for row in record["rows"] if row["figure"] is None]
    missing = ("data sheet", "no memory plan", "No module", "is not built")
    assert all(any(word in row["reason"] for word in missing) for row in without), without


def test_what_has_no_time_is_recorded_with_its_reason(tmp_path: Path) -> None:
    record = record_of(tmp_path / "gpu.json", "--only", "B4", "--budget", "1")
    assert [row["reason"] for row in record["rows"]] == ["no time left of 570 s"]


def test_a_row_that_does_not_exist_is_one_line_and_78(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--only", "B12", "--out", str(tmp_path / "gpu.json")]) == 78
    assert capsys.readouterr().err == "benchmarks.gpu: --only B12: there is no such row; there are B1 to B10\n"


# --- parts ------------------------------------------------------------------------------------------------


def dies(tell: Tell) -> None:
    tell(1)
    os.kill(os.getpid(), signal.SIGKILL)


def fails(tell: Tell) -> None:
    tell(1)
    raise ValueError("two\nlines")


def leaves_a_child_and_hangs(tell: Tell) -> None:
    tell(subprocess.Popen(["sleep", "1000"]).pid)
    time.sleep(1000)


@pytest.mark.parametrize(
    ("work", "reason"),
    [(dies, "its process ended by SIGKILL"), (fails, "ValueError: two lines")],
    ids=["dies", "fails"],
)
def test_what_a_part_told_stands(work: Callable[[Tell], None], reason: str, tmp_path: Path) -> None:
    heard = []
    with pytest.raises(Broken, match=reason):
        for value in told(work, time.monotonic() + 60, tmp_path / "log"):
            heard.append(value)
    assert heard == [1]


def test_a_part_that_hangs_ends_with_all_that_it_started(tmp_path: Path) -> None:
    heard: list[int] = []
    with pytest.raises(Broken, match="did not end within its time"):
        for pid in told(leaves_a_child_and_hangs, time.monotonic() + 5, tmp_path / "log"):
            heard.append(pid)
    state = Path(f"/proc/{heard[0]}/stat")
    deadline = time.monotonic() + 10
    while state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"


# --- the record -------------------------------------------------------------------------------------------


def test_a_figure_comes_back_as_it_was_kept() -> None:
    figure = Figure(
        "pace", "tokens/s", 60_000.0, "HF Trainer", 40_000.0, row="B1", note="ddp", sm_mhz=1980.0, watts=650.0
    )
    judged = figure.faster(1.25)
    assert judged.met and judged.ratio == 1.5
    assert figure_of({**tree(judged), "part": "1B"}) == judged
    assert figure_of(tree(judged.reduced())).cause == REDUCED
    assert Figure("stall", "s", row="B6", cause="no room").at_most(0.3).met is None


def test_a_record_of_another_device_is_left_alone(tmp_path: Path) -> None:
    found: dict[str, Any] = {"reduced": True, "device": {"name": "CPU"}, "limits": {}}
    file = tmp_path / "gpu.json"
    record = bench.opened(file, found)
    assert record is not None
    bench.write({**record, "mode": "full", "rows": [{"row": "B1"}]}, file)
    assert bench.opened(file, found) is None
    bench.write({**record, "versions": {"torch": "1"}, "rows": [{"row": "B1"}]}, file)
    again = bench.opened(file, found)
    assert again is not None and again["rows"] == [], "a reduced record is worth nothing"


def test_the_records_that_are_kept_can_be_read() -> None:
    for file in bench.RESULTS.glob("*-gpu.json"):
        assert all(row.keys() >= KEYS and figure_of(row) for row in json.loads(file.read_text())["rows"]), file


def test_clock_and_power_are_read_beside_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text(
        '#!/bin/sh\ncase "$*" in *driver*) echo "NVIDIA H200, 143771 MiB" ;; *) echo "1980, 512.25" ;; esac\n'
    )
    smi.chmod(smi.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert devices() == {"name": "NVIDIA H200", "memory.total": "143771 MiB"}
    with Clocks(tmp_path / "clocks.csv") as clocks:
        deadline = time.monotonic() + 10
        while not (found := clocks.read()) and time.monotonic() < deadline:
            time.sleep(0.05)
    assert found == {"sm_mhz": 1980.0, "watts": 512.2}


def test_documents_fill_a_sequence() -> None:
    assert cut([30, 50, 40, 7], 100) == [30, 50, 20]
    assert cut([30, 30], 100) == [30, 30, 40]


# --- the recipe -------------------------------------------------------------------------------------------


def test_the_recipe_of_two_nodes_asks_for_data_and_a_model(tmp_path: Path) -> None:
    tree = recipe.read(RECIPE)
    assert tree.pop("job") == {"nodes": 2, "gpus_per_node": 8}
    with pytest.raises(ConfigError, match="data.train: there is no file .*recipes/llama8b/train.jsonl$"):
        recipe.checked(tree, tmp_path, 16, "recipe")
    (tmp_path / "train.jsonl").touch()
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    data = f"data.train=[{tmp_path}/train.jsonl]"
    with pytest.raises(ConfigError, match="model.path: there is no folder .*recipes/llama8b/model$"):
        recipe.checked(recipe.overridden(tree, [data]), tmp_path, 16, "recipe")
    ready = recipe.checked(recipe.overridden(tree, [data, f"model.path={tmp_path}"]), tmp_path, 16, "recipe")
    assert ready.batch.splitlines() == ["global batch 16 = 1 micro x 1 accumulation x 16 ranks"]
