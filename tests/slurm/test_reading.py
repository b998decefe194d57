"""What `status` and `logs` say, from run folders alone."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest

import launch
from durable import append_line
from settings import ConfigError
from slurm import runs
from slurm.causes import logs
from slurm.causes.failures import job_log, rank_log
from slurm.commands import QueueLine
from slurm.rundir import RunDir
from slurm.watch.status import status
from slurm.watch.status_text import as_text
from tests.waiting import wait_until


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """A run with a job that Slurm does not know, one attempt, and two ranks that crashed."""
    monkeypatch.setenv("PATH", "/nonexistent")  # no Slurm: the folder must be enough
    run = RunDir(tmp_path / "runs" / "sft")
    run.path.mkdir(parents=True)
    (run.path / "job.yaml").touch()
    run.record_job("812", None)
    run.claim("812", 0, after=0)
    run.attempt_dir(1).mkdir(parents=True)
    for rank, code, signal, when in ((0, None, 9, 2.0), (1, 1, None, 3.0), (2, 1, None, 4.0)):
        rank_log(run, 1, rank).write_text(f"words of rank {rank}\n")
        end = {"rank": rank, "code": code, "signal": signal, "time": when}
        (run.attempt_dir(1) / f"rank-{rank:04d}.exit").write_text(json.dumps(end))
    return run


def test_logs_shows_the_rank_that_failed_first_by_itself(run: RunDir) -> None:
    assert "words of rank 1" in logs.show(run)  # rank 0 was killed because another had crashed
    assert "words of rank 2" in logs.show(run, rank=2)
    assert "no log of rank 7" in logs.show(run, rank=7)
    assert "has not started yet" in logs.show(RunDir(run.path.parent / "new"))


def test_the_verb_logs_and_what_does_not_go_together(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(run.path.parent.parent)

    def said(code: int, *words: str) -> str:
        assert launch.main(["logs", "sft", *words]) == code
        out = capsys.readouterr()
        return out.err if code else out.out

    assert "words of rank 1" in said(0) and "words of rank 2" in said(0, "--rank", "2")
    assert all(f"words of rank {rank}" in said(0, "--all") for rank in range(3))
    assert json.loads(said(0, "--json", "--rank", "2"))["lines"] == ["words of rank 2"]
    for wrong in (
        ["--all", "--rank", "1"],
        ["--json", "--all"],
        ["--json", "--follow"],
        ["--follow", "--attempt", "1"],
    ):
        assert all(flag in said(78, *wrong) for flag in wrong if flag.startswith("--"))
    run.write_done("test")
    assert "words of rank 0" in said(0, "--follow")


def test_ctrl_c_is_the_way_out_of_what_follows(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """And of what looks again and again: no traceback."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(run.path.parent.parent)
    monkeypatch.setattr(logs, "follow", interrupted)
    assert launch.main(["logs", "sft", "-f"]) == 130


def test_logs_are_followed_over_attempts_until_the_run_is_over(run: RunDir) -> None:
    seen: list[str] = []
    follower = threading.Thread(target=logs.follow, args=(run, 0, lambda: True, seen.append))
    follower.start()
    wait_until(lambda: seen)
    with open(rank_log(run, 1, 0), "a") as file:
        file.write("whole\ntorn")
    run.attempt_dir(2).mkdir()
    rank_log(run, 2, 0).write_text("second\n")
    run.claim("813", 0, after=1)
    run.write_done("test")
    follower.join(30)
    told = "== rank 1: exit 1 (it failed first; 2 others did not end well)"
    assert seen == ["words of rank 0", "whole", "torn", told, "== attempt 2", "second"]


def test_status_in_words(run: RunDir) -> None:
    append_line(run.events, {"event": "step", "epoch": 1, "step": 7, "loss": 2.5, "seconds": 1.0, "time": 60.0})
    end = {"attempt": 1, "start": 0.0, "end": 61.0, "cause": "crash", "reason": "rank 1: exit 1"}
    run.record_attempt({**end, "first_step": 0, "committed_step": 5})
    text = as_text(status([run]))
    assert "sft: interrupted" in text and "launch.py resume sft" in text and "step 7, loss 2.5000" in text
    assert "61 s" in text and "crash" in text and "rank 1: exit 1" in text
    run.cancel("stop", "launch.py stop")
    assert "sft: ended (stop: launch.py stop" in as_text(status([run]))
    run.write_done("x")
    assert "sft: done" in as_text(status([run]))
    assert json.dumps(status([run])[0].as_json())
    assert as_text([]) == "no runs yet"


def test_status_tells_what_a_user_should_know(run: RunDir) -> None:
    now = time.time()
    lost = {"start": now - 60, "end": now, "cause": "preemption", "reason": "", "first_step": 4, "committed_step": 4}
    for attempt in range(1, 10):
        run.record_attempt({**lost, "attempt": attempt})
    assert status([run])[0].notes == []
    run.record_attempt({**lost, "attempt": 10, "cause": "node_failure", "failed_on": "n7"})
    told = "the last 10 attempts ended by preemption, node failure or requeue: without a new committed step"
    assert status([run])[0].notes == [told]
    run.record_attempt({**lost, "attempt": 11, "committed_step": 9, "cause": "crash", "failed_on": "n7"})
    assert status([run])[0].notes == ["attempts failed on n7: for a day the next job keeps away, where it can"]
    run.note_fallback("this job starts again, since a successor was refused: AssocMaxSubmitJobLimit")
    assert "AssocMaxSubmitJobLimit" in as_text(status([run]))
    run.note_fallback(None)
    run.cancel("no progress", "3 attempts", ["Traceback", "ValueError: poison"])
    assert as_text(status([run])).endswith("\n  Traceback\n  ValueError: poison")


@pytest.mark.parametrize(
    ("job", "state", "reason", "sent"),
    [
        ("812", "PENDING", "BeginTime", [("812", {"StartTime": "now"})]),
        ("812", "PENDING", "Resources", []),
        ("813", "PENDING", "BeginTime", []),  # it has not run yet: its user asked for --begin
    ],
)
def test_status_cuts_the_wait_of_a_requeued_job(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, job: str, state: str, reason: str, sent: list[object]
) -> None:
    line = QueueLine(job, state, reason, "1:00", None, f"{run.logs}/job-%j.log")
    asked: list[object] = []
    monkeypatch.setattr("slurm.commands.queue", lambda ids, ended: {job: line})
    monkeypatch.setattr("slurm.commands.update", lambda job_id, **fields: asked.append((job_id, fields)))
    status([run])
    assert asked == sent


def test_sruns_own_words_are_found_in_the_jobs_log(run: RunDir) -> None:
    log = job_log(run, "812")
    log.write_text("srun: error: of an earlier attempt\n")
    start = log.stat().st_size
    assert logs.srun_words(log, start) == "" == logs.srun_words(job_log(run, None), 0)
    with open(log, "a") as file:
        file.write("srun: Job 812 step creation still disabled\nsrun: error: Unable to create step for job 812: Bad\n")
    assert logs.srun_words(log, start) == "Unable to create step for job 812: Bad"


def test_a_run_is_known_by_name_folder_and_job(run: RunDir) -> None:
    folder = run.path.parent
    assert runs.find_run(None, folder) == runs.find_run("sft", folder) == runs.find_run("812", folder)
    assert runs.find_run(str(run.path), Path("elsewhere")) == run
    with pytest.raises(ConfigError, match="there is no run sfft: did you mean sft?"):
        runs.find_run("sfft", folder)
    with pytest.raises(ConfigError, match="there is no run in"):
        runs.find_run(None, folder / "empty")
