"""W&B's offline run of what a run told: one id over all attempts, each step once."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from settings import ConfigError, read_yaml
from tests.trainer.report.lives import FIVE_CUTS, Life, Truth, write_run
from trainer.report import __main__ as command
from trainer.report import wandb_run
from trainer.report.run import read


class Written:
    """Stands for wandb's own run, and keeps what it is told."""

    def __init__(self, told: list[dict[str, Any]], **about: Any) -> None:
        self.about, self.rows = about, []
        self.dir = f"{about['dir']}/wandb/offline-run-{len(told)}-{about['id']}/files"
        told.append({"about": about, "rows": self.rows})

    def __enter__(self) -> Written:
        return self

    def __exit__(self, *_: object) -> None:
        Path(self.dir).mkdir(parents=True)

    def log(self, values: dict[str, float], step: int) -> None:
        self.rows.append((step, values))


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What wandb is told from here on."""
    told: list[dict[str, Any]] = []
    module = types.ModuleType("wandb")
    module.Settings = dict  # type: ignore[attr-defined]
    module.init = lambda **about: Written(told, **about)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    return told


def wanted(truth: Truth) -> None:
    with open(truth.path / "config.yaml", "a") as file:
        file.write("wandb: offline\n")


def test_each_step_once_over_five_interruptions(
    tmp_path: Path, wandb: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    truth = write_run(tmp_path, FIVE_CUTS)
    wanted(truth)
    assert command.main(truth.path, png=False, markdown=False, as_json=False) == 0
    (told,) = wandb
    assert [step for step, _ in told["rows"]] == list(range(1, 301))
    about = told["about"]
    claim = json.loads((truth.path / "claims" / "0001.json").read_text())
    assert (about["mode"], about["id"], about["resume"], about["name"]) == ("offline", claim["nonce"], "allow", "run")
    assert about["config"] == read_yaml(truth.path / "config.yaml")
    events = [json.loads(line) for line in (truth.path / "events.jsonl").read_text().splitlines()]
    losses = {event["step"]: event["loss"] for event in events if event["event"] == "step"}  # the last one counts
    assert [values["loss/train"] for _, values in told["rows"]] == list(losses.values())
    held_out = {step: values["loss/held-out general"] for step, values in told["rows"] if step % 50 == 0}
    assert len(held_out) == 6 and not any("loss/held-out general" in v for s, v in told["rows"] if s % 50)
    times = [values["_timestamp"] for _, values in told["rows"]]
    assert times == sorted(times) and "optimizer/learning rate" in told["rows"][0][1]
    assert "wandb sync " in capsys.readouterr().out
    # Again: nothing is new, and nothing is written.
    assert command.main(truth.path, png=False, markdown=False, as_json=False) == 0
    assert len(wandb) == 1 and "W&B: no new step" in capsys.readouterr().out


def test_a_run_that_goes_on_is_continued_under_its_id(tmp_path: Path, wandb: list[dict[str, Any]]) -> None:
    truth = write_run(tmp_path, [Life(0, 60, "timeout"), Life(60, 100, "done")])
    events, done = (truth.path / "events.jsonl").read_bytes(), (truth.path / "DONE").read_bytes()
    lines = events.splitlines(keepends=True)
    half = next(
        number
        for number, line in enumerate(lines)
        if json.loads(line).get("event") == "step" and json.loads(line)["step"] == 50
    )
    (truth.path / "DONE").unlink()
    (truth.path / "events.jsonl").write_bytes(b"".join(lines[: half + 1]))
    wandb_run.write(read(truth.path))
    (truth.path / "events.jsonl").write_bytes(events)
    (truth.path / "DONE").write_bytes(done)
    wandb_run.write(read(truth.path))
    first, second = wandb
    assert first["about"]["id"] == second["about"]["id"]
    assert [step for step, _ in first["rows"]] == list(range(1, 50))  # the evaluation of step 50 is still to come
    assert [step for step, _ in second["rows"]] == list(range(50, 101))
    assert "loss/held-out own" in second["rows"][0][1]


def test_it_is_by_choice_and_says_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    truth = write_run(tmp_path, [Life(0, 5, "done")])
    monkeypatch.setitem(sys.modules, "wandb", None)  # as where it is not installed
    assert command.main(truth.path, png=False, markdown=False, as_json=False) == 0
    with pytest.raises(ConfigError, match=r"^W&B needs the package wandb in this Python: pip install wandb$"):
        command.main(truth.path, png=False, markdown=False, as_json=False, wandb=True)
    assert not (truth.path / "wandb").exists() and (truth.path / "report.html").exists()


READER = """
import json, sys
from wandb.proto.wandb_internal_pb2 import Record
for line in sys.stdin:
    record = Record()
    record.ParseFromString(bytes.fromhex(line))
    kind = record.WhichOneof("record_type")
    if kind == "run":
        print(json.dumps(["run", record.run.run_id]))
    elif kind == "history":
        values = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        print(json.dumps(["step", record.history.step.num, values]))
"""


def pieces(data: bytes) -> Iterator[bytes]:
    """Records of a .wandb file: LevelDB's log. In blocks of 32 KiB, each piece behind checksum, length and type (whole,
    first, middle, last)."""
    at, record = 7, b""
    while at + 7 <= len(data):
        if (left := 32_768 - at % 32_768) < 7:
            at += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        record += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):
            yield record
            record = b""


@pytest.mark.nightly  # it installs wandb
def test_with_the_package_itself(tmp_path: Path) -> None:
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-q", "--target", str(site), "wandb"]
    subprocess.run(pip, check=True, timeout=600)
    truth = write_run(tmp_path / "made", FIVE_CUTS)
    environment = {**os.environ, "PYTHONPATH": str(site)}
    argv = [sys.executable, "-m", "trainer.report", str(truth.path), "--wandb"]
    said = subprocess.run(argv, env=environment, check=True, capture_output=True, text=True, timeout=300).stdout
    (file,) = (truth.path / "wandb").glob("offline-run-*/*.wandb")
    assert f"wandb sync {os.path.relpath(file.parent)}" in said.splitlines()
    lines = "".join(f"{record.hex()}\n" for record in pieces(file.read_bytes()))
    shown = subprocess.run(
        [sys.executable, "-c", READER], input=lines, env=environment, check=True, capture_output=True, text=True
    ).stdout
    told = [json.loads(line) for line in shown.splitlines()]
    assert [one[1] for one in told if one[0] == "run"] == [wandb_run.identity(truth.path)]
    steps = [one for one in told if one[0] == "step"]
    assert [one[1] for one in steps] == list(range(1, 301))
    expected = dict((step, (time, values)) for step, time, values in wandb_run.steps(read(truth.path)))
    for _, step, values in steps:
        time, ours = expected[step]
        assert values["_timestamp"] == time and {key: values[key] for key in ours} == pytest.approx(ours)
