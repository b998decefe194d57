from __future__ import annotations

import multiprocessing
import stat
from pathlib import Path

from durable import append_line, read_lines
from slurm.rundir import RunDir


def _claim(folder: str) -> int:
    return RunDir(Path(folder)).claim("1", 0).epoch


def test_every_claim_is_won_by_one(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        epochs = pool.map(_claim, [str(tmp_path)] * 40)
    assert sorted(epochs) == list(range(1, 41))


def test_a_claim_whose_writer_died_still_counts(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.claim("1", 0)
    (run.claims_dir / "0002.json").write_text("")
    assert run.newest_epoch() == 2
    assert run.read_claim(2) is None
    assert run.claim("1", 0).epoch == 3


def test_a_line_torn_by_a_kill_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "attempts.jsonl"
    append_line(path, {"attempt": 1})
    with open(path, "a") as file:
        file.write('{"attempt": 2, "cau')
    assert read_lines(path) == [{"attempt": 1}]


def test_a_checkpoint_without_manifest_does_not_exist(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    for name in ("step-00000005-e0001", "step-00000009-e0002", ".tmp-00000011-e0002-ab"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert run.committed_step() == 0
    (tmp_path / "checkpoints" / "step-00000005-e0001" / "MANIFEST.json").touch()
    assert run.committed_step() == 5


def test_files_are_not_writable_by_everybody(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.claim("1", 0)
    run.cancel("stop", "why")
    run.record_job("1", None)
    for path in tmp_path.rglob("*"):
        assert not path.stat().st_mode & stat.S_IWOTH, path


def test_the_end_is_told_with_its_cause(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    assert not run.over
    run.cancel("budget", "3 attempts")
    assert run.cancelled is not None and run.cancelled["cause"] == "budget"
    (tmp_path / "CANCELLED").write_text("")  # written by a person's touch
    assert run.over and run.cancelled["cause"] == "cancel"
