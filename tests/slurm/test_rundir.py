from __future__ import annotations

import multiprocessing
import stat
from pathlib import Path

from durable import append_line, read_lines
from slurm.rundir import RunDir


def _claim(folder: str) -> list[int]:
    """Epochs that one of several starters wins until there are 40."""
    run, won = RunDir(Path(folder)), []
    while (newest := run.newest_epoch()) < 40:
        if (claim := run.claim("1", 0, newest)) is not None:
            won.append(claim.epoch)
    return won


def test_every_claim_is_won_by_one(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        epochs = [epoch for won in pool.map(_claim, [str(tmp_path)] * 4) for epoch in won]
    assert sorted(epochs) == list(range(1, len(epochs) + 1)) and len(epochs) >= 40


def test_a_claim_follows_the_one_that_its_writer_knows(tmp_path: Path) -> None:
    """A lost node's supervisor, which comes back between two attempts, does not overrun the owner."""
    run = RunDir(tmp_path)
    assert run.claim("1", 0, after=0) is not None and run.claim("2", 0, after=1) is not None
    assert run.claim("1", 0, after=1) is None and run.newest_epoch() == 2


def test_of_two_ends_of_an_attempt_the_first_counts(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    for attempt, cause in ((2, "timeout"), (1, "node_failure"), (1, "crash")):
        run.record_attempt({"attempt": attempt, "cause": cause})
    assert [(end["attempt"], end["cause"]) for end in run.attempts()] == [(1, "node_failure"), (2, "timeout")]


def test_a_claim_whose_writer_died_still_counts(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.claim("1", 0, after=0)
    (run.claims_dir / "0002.json").write_text("")
    assert run.newest_epoch() == 2
    assert run.read_claim(2) is None
    assert run.claim("1", 0, after=2) == run.read_claim(3)


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
    run.claim("1", 0, after=0)
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
