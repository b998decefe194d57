"""A sweep on a real Slurm: one array, whose runs are preempted and killed and come to their ends all the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from envs.drill.ranks import ranks
from envs.pocket import Pocket
from slurm.rundir import RunDir, Sweep
from slurm.sweeps import results
from tests.cluster.conftest import ROOT, Launch, causes, job_log, over
from tests.cluster.training import reaches
from tests.waiting import wait_until


@pytest.mark.parametrize("limited", [True, pytest.param(False, marks=pytest.mark.nightly)], ids=["limited", "free"])
def test_three_runs_of_which_one_is_preempted_and_one_is_killed(
    launch: Launch, pocket: Pocket, recipe: Path, limited: bool
) -> None:
    """With a limit of runs at a time the same job starts again; without one a successor of its own goes on, also after
    its supervisor was killed."""
    words = [
        "sweep",
        str(recipe),
        "optim.lr=1e-4,1e-3,1e-2",
        "train.steps=40",
        "export=false",
        "--gpus",
        "1",
        "--launcher",
        "fork",
    ]
    words += ["-p", "preempt", "job.sbatch.exclusive=true", "--mail-type", "END", *(["--parallel", "2"] * limited)]
    sweep = Sweep(launch(*words, name="tuned").path)
    (array,) = sweep.jobs()
    first, second, third = sweep.runs
    for run in (first, second):
        reaches(run, 1, 16)
    if limited:
        assert third.newest_epoch() == 0  # it has its place when another has left
    os.kill(ranks(second)[-1] if limited else _supervisor(second), signal.SIGKILL)
    node = pocket.ask("squeue", "-h", "-o", "%N", f"--jobs={array['job']}_0").strip()
    urgent = ["-p", "urgent", "-w", node, "--exclusive", "--output=/dev/null", "--wrap=sleep 1"]
    pocket.ask("sbatch", *urgent)
    for run in (first, second, third):
        over(run, 240)
    assert causes(first) == ["preemption", "done"], job_log(first)
    assert causes(second) == ["crash", "done"], job_log(second)
    assert causes(third) == ["done"], job_log(third)
    again = {(record["job_id"], record["restart_count"]) for record in first.attempts()}
    if limited:
        assert again == {(f"{array['job']}_0", 0), (f"{array['job']}_0", 1)} and len(first.jobs()) == 1
    else:
        assert len(again) == 2 and [record["after"] for record in first.jobs()[:2]] == [None, f"{array['job']}_0"]

    wait_until(lambda: not pocket.jobs(), "nothing to be left in the queue")
    found = results.of(sweep)
    assert [row.status.state for row in found.rows] == ["done"] * 3 and found.measure == "held_out"
    assert found.best is not None and found.best.held_out == min(row.held_out or 9 for row in found.rows)
    mails = pocket.layout.log("mail")
    ours = {str(record["job"]) for run in sweep.runs for record in run.jobs()}
    wait_until(lambda: mails.exists() and any(job in mails.read_text() for job in ours), "the mail of the end")
    assert sum(job in line for line in mails.read_text().splitlines() for job in ours) == 1  # of all of them

    argv = [sys.executable, str(ROOT / "launch.py"), "--runs-dir", str(sweep.path.parent), "--name", "tuned", *words]
    said = subprocess.run(argv, env={**os.environ, **pocket.env()}, capture_output=True, text=True, check=True).stdout
    assert "left, since it is done: " in said and "nothing is to be done" in said and not pocket.jobs()


def _supervisor(run: RunDir) -> int:
    claim = run.read_claim(1)
    assert claim is not None and claim.pid is not None
    return claim.pid
