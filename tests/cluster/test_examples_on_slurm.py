"""The examples of other people's programs on a real Slurm: cut by a time limit, preempted, and every step done."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from envs.drill.faults import end_soon
from envs.pocket import Pocket
from slurm.rundir import RunDir
from slurm.watch.status import status
from tests.cluster.conftest import ROOT, Launch, causes, job_log, job_of, over
from tests.waiting import wait_until

EXAMPLES = ROOT / "recipes" / "any"
Steps = Callable[[RunDir, int], list[int]]


def example(name: str) -> list[str]:
    return ["--", sys.executable, str(EXAMPLES / name)]


def log(run: RunDir, attempt: int) -> str:
    path = run.attempt_dir(attempt) / "rank-0000.log"
    return path.read_text() if path.exists() else ""


def ddp_steps(run: RunDir, attempt: int) -> list[int]:
    return [int(step) for step in re.findall(r"^step (\d+) ", log(run, attempt), re.MULTILINE)]


def cut_and_preempted(launch: Launch, pocket: Pocket, steps: Steps, *words: str) -> RunDir:
    run = launch("--nodes", "2", "--gpus", "2", "-p", "preempt", "--lead", "10", *words, PYTHONUNBUFFERED="1")

    def goes_on(attempt: int) -> None:
        wait_until(lambda: run.over or len(steps(run, attempt)) > 10, f"steps of attempt {attempt}", 240)
        assert not run.over, f"{causes(run)}\n{job_log(run)}\n{log(run, attempt)}"

    goes_on(1)
    end_soon(pocket, job_of(run), 13)
    goes_on(2)
    pocket.ask("sbatch", "-p", "urgent", "-N2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
    over(run, 300)
    assert causes(run) == ["timeout", "preemption", "done"], f"{job_log(run)}\n{log(run, run.newest_epoch())}"
    return run


@pytest.mark.nightly
def test_plain_ddp_loses_no_step(launch: Launch, pocket: Pocket) -> None:
    run = cut_and_preempted(launch, pocket, ddp_steps, *example("ddp.py"), "--steps", "3000")
    assert [step for attempt in (1, 2, 3) for step in ddp_steps(run, attempt)] == list(range(1, 3001))
    assert [record["exits"] for record in run.attempts()] == [{"exit 75": 4}, {"exit 75": 4}, {"exit 0": 4}]
    firsts = [record["first_step"] for record in run.attempts()]
    assert firsts == [0, *(record["committed_step"] for record in run.attempts()[:2])] and firsts[2] > firsts[1] > 0
    assert [record["progress"] for record in run.attempts()] == [True] * 3 and status([run])[0].step == 3000


@pytest.mark.nightly
def test_trainer_as_it_is(launch: Launch, pocket: Pocket) -> None:
    """It is ended by TERM, and goes on from its last checkpoint."""

    def losses(run: RunDir, attempt: int) -> list[int]:
        return list(range(len(re.findall(r"'loss'", log(run, attempt)))))

    words = ["--progress", "trainer/checkpoint-*", *example("hf_trainer.py"), "--steps", "400", "--save-steps", "5"]
    run = cut_and_preempted(launch, pocket, losses, *words)
    assert [record["progress"] for record in run.attempts()] == [True] * 3
    assert run.attempts()[2]["exits"] == {"exit 0": 4}  # the others by TERM, or for want of a peer that had it
    state = json.loads((run.path / "trainer" / "checkpoint-400" / "trainer_state.json").read_text())
    told = [line["step"] for line in state["log_history"] if "loss" in line]
    assert told == list(range(1, 401)) and (run.path / "trainer" / "final" / "model.safetensors").exists()
    done = sum(len(losses(run, attempt)) for attempt in (1, 2, 3))
    assert 400 <= done <= 400 + 2 * 6  # twice the steps since a checkpoint, and the one that was on its way


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_is_short(path: Path) -> None:
    assert 20 < len(path.read_text().splitlines()) <= 100
