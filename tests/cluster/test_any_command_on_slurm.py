"""A foreign command that saves when it is asked, and goes on until Slurm ends it."""

from __future__ import annotations

import pytest

from envs.drill.faults import end_soon
from envs.pocket import Pocket
from slurm.rundir import RunDir
from tests.cluster.conftest import Launch, causes, job_log, over
from tests.waiting import wait_until

GOES_ON = """
import os, signal, sys, time
run, rank, attempt = os.environ["OUTLAST_RUN_DIR"], os.environ["RANK"], os.environ["OUTLAST_ATTEMPT"]
def save(signum, frame):
    with open(f"{run}/heard-{attempt}-{rank}", "a") as file:
        file.write(signal.Signals(signum).name + "\\n")
    open(f"{run}/saved-{attempt}", "w").close()
signal.signal(signal.SIGUSR1, save)
signal.signal(signal.SIGTERM, signal.SIG_IGN)  # this Slurm signals every process
open(f"{run}/ready-{attempt}-{rank}", "w").close()
while attempt != "4":
    time.sleep(0.05)
"""


def cut(launch: Launch, pocket: Pocket, attempts: int, *words: str) -> RunDir:
    run = launch("--nodes", "2", "--gpus", "2", "--stop-signal", "USR1", "--lead", "4", *words, program=GOES_ON)
    for attempt in range(1, attempts + 1):
        wait_until(lambda n=attempt: len(list(run.path.glob(f"ready-{n}-*"))) == 4, f"attempt {attempt}", 120)  # type: ignore[misc]
        claim = run.read_claim(attempt)
        assert claim is not None and claim.job_id is not None
        end_soon(pocket, claim.job_id, 7)
    over(run)
    heard = [(run.path / f"heard-{n}-{rank}").read_text().split() for n in range(1, attempts + 1) for rank in range(4)]
    # Once for the word before the end, once for Slurm's own signal at the end.
    assert all(words == ["SIGUSR1"] * 2 for words in heard), heard
    return run


@pytest.mark.nightly  # three time limits of a minute each
@pytest.mark.parametrize(("pattern", "end"), [("saved-*", "done"), ("nothing-*", "no progress")])
def test_it_is_left_alone_and_counts_as_a_timeout(launch: Launch, pocket: Pocket, pattern: str, end: str) -> None:
    run = cut(launch, pocket, 3, "--progress", pattern)
    assert causes(run) == ["timeout"] * 3 + ["done"] * (end == "done"), job_log(run)
    assert [record["progress"] for record in run.attempts()[:3]] == [end == "done"] * 3
    assert run.done or (run.cancelled is not None and run.cancelled["cause"] == end)
