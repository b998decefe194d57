"""One attempt, over a step that is no srun."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from slurm import attempt
from slurm.attempt import Attempt
from slurm.commands import JobFacts
from slurm.config import make_job
from slurm.rundir import RunDir
from slurm.scheduler import Local
from slurm.step import Step


class OneNode(Local):
    """Its step runs a shell's words."""

    words = ""

    def facts(self) -> JobFacts | None:
        return None

    def step_argv(self, step: Step) -> list[str]:
        return ["sh", "-c", f"cd {step.run_dir}/logs/attempt-0001; {self.words}"]


def ends(*codes: int) -> str:
    files = {f"rank-{rank:04d}.exit": {"rank": rank, "code": code, "signal": None} for rank, code in enumerate(codes)}
    told = [f"echo '{json.dumps({**end, 'time': 1.0, 'host': 'n'})}' > {name}" for name, end in files.items()]
    return "; ".join(told)


def execute(run: RunDir, words: str) -> dict[str, Any]:
    """The record of an attempt of two ranks over these words."""
    run.logs.mkdir(parents=True)
    job = make_job({"name": "x", "gpus_per_node": 2, "cluster": "local", "poll_seconds": 0.1}, "test")
    scheduler = OneNode(job)
    scheduler.words = words
    claim = run.claim(None, 0, after=0)
    assert claim is not None
    return Attempt(run, job, scheduler, claim, lambda reason: None, lambda: None).execute()


@pytest.mark.parametrize(
    ("codes", "cause"), [((1, 1), "node_failure"), ((75, 75), "node_failure"), ((0, 0), "done"), ((78, 78), "config")]
)
def test_a_step_that_does_not_end_with_its_ranks_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codes: tuple[int, ...], cause: str
) -> None:
    """As srun, whose slurmstepd was killed: it would wait to the time limit, and a next step with it."""
    monkeypatch.setattr(attempt, "STEP_OUTLIVES", 0.2)
    began = time.monotonic()
    record = execute(RunDir(tmp_path / "run"), f"{ends(*codes)}; exec sleep 1000")
    assert time.monotonic() - began < 60
    assert record["cause"] == cause
    assert ("slurmstepd is gone" in record["reason"]) == (cause == "node_failure")


def test_a_step_whose_ranks_run_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempt, "STEP_OUTLIVES", 0.5)
    record = execute(RunDir(tmp_path / "run"), f"{ends(75)}; sleep 1; {ends(75, 75)}")
    assert record["cause"] == "signal" and record["exits"] == {"exit 75": 2}


def test_a_command_hears_of_its_deadline_at_its_lead_and_not_a_poll_later(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.logs.mkdir(parents=True)
    words = {"name": "x", "cluster": "local", "poll_seconds": 1000.0, "lead_seconds": 60.0, "command": ["true"]}
    scheduler = OneNode(make_job(words, "test"))
    scheduler.words = f"until [ -e ../../claims/0001.stop ]; do sleep 0.05; done; {ends(75)}"
    deadline = time.time() + 62
    scheduler.deadline = lambda facts: deadline  # type: ignore[method-assign]
    claim = run.claim(None, 0, after=0)
    assert claim is not None
    record = Attempt(run, scheduler.job, scheduler, claim, lambda reason: None, lambda: None).execute()
    assert record["cause"] == "timeout" and record["end"] >= deadline - 60


def test_a_word_that_could_not_be_written_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file system fails just when the allocation's end is near."""
    written: list[Path] = []

    def fails_once(path: Path, text: str) -> None:
        written.append(path)
        if written.count(path) == 1 and path.name.endswith(".stop"):
            raise OSError(5, "Input/output error")
        path.write_text(text)

    monkeypatch.setattr(attempt, "write_atomic", fails_once)
    run = RunDir(tmp_path / "run")
    waits = "until [ -e ../../claims/0001.stop ]; do sleep 0.05; done"
    run.logs.mkdir(parents=True)
    job = make_job(
        {"name": "x", "gpus_per_node": 1, "cluster": "local", "poll_seconds": 0.1, "command": ["true"]}, "test"
    )
    scheduler = OneNode(job)
    scheduler.words = f"{waits}; {ends(75)}"
    scheduler.deadline = lambda facts: time.time() + 1  # type: ignore[method-assign]
    claim = run.claim(None, 0, after=0)
    assert claim is not None
    record = Attempt(run, job, scheduler, claim, lambda reason: None, lambda: None).execute()
    assert record["cause"] == "timeout" and written.count(run.stop_word(1)) == 2
