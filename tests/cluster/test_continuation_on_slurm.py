"""How a run goes on, on a real Slurm: each way, what is done where one is refused, and what a supervisor's death costs."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from envs.pocket import Pocket
from slurm.commands import sent_as
from slurm.rundir import RunDir
from tests.cluster.conftest import ROOT, Launch, causes, job_log, job_of, over
from tests.cluster.test_commands_on_slurm import WAITS
from tests.waiting import wait_until

SAVES = "signal.signal(signal.SIGTERM, lambda *a: sys.exit(0))\n"
SHORT = ["-t", "00:01:00", "job.lead_seconds=55"]


def first_attempts(count: int, then: str = "wait()") -> str:
    """A command that is told to stop in so many attempts, and is done in the next one."""
    return f"{WAITS}{SAVES}if attempt <= {count}: {then}\n"


def rank_0(run: RunDir, attempt: int = 1) -> int:
    return int(wait_until(lambda: next(run.path.glob(f"pid-{attempt}-0"), None), f"rank 0 of {attempt}").read_text())


def says(run: RunDir, pocket: Pocket) -> str:
    """`launch.py status`."""
    argv = [sys.executable, str(ROOT / "launch.py"), "status", str(run.path)]
    return subprocess.run(argv, env=pocket.env(), capture_output=True, text=True, check=True).stdout


@pytest.fixture
def one_job_only(tmp_path: Path, pocket: Pocket) -> str:
    """A PATH with an sbatch that refuses a second job in the words of a site with submit limits."""
    programs = tmp_path / "bin"
    programs.mkdir()
    real = shutil.which("sbatch")
    (programs / "sbatch").write_text(f"""#!/bin/sh
case "$*" in *--dependency*)
    echo "sbatch: error: AssocMaxSubmitJobLimit" >&2
    echo "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy" >&2
    exit 1 ;;
esac
exec {real} "$@"
""")
    (programs / "sbatch").chmod(0o755)
    return f"{programs}:{os.environ['PATH']}"


# What a chain does at a time limit the drill's test shows as well.
@pytest.mark.parametrize(
    "continue_by", ["array", *(pytest.param(way, marks=pytest.mark.nightly) for way in ("chain", "requeue"))]
)
def test_three_time_limits(launch: Launch, pocket: Pocket, continue_by: str) -> None:
    words = ["--continue-by", continue_by, "job.array_jobs=2"]
    run = launch("--gpus", "2", *SHORT, *words, program=first_attempts(3))
    over(run, 400)
    assert causes(run) == ["timeout"] * 3 + ["done"], job_log(run)
    jobs = [(record["job_id"], record["restart_count"]) for record in run.attempts()]
    if continue_by == "requeue":
        assert jobs == [(job_of(run), count) for count in range(4)] and len(run.jobs()) == 1
    elif continue_by == "array":
        assert jobs == [(f"{job_of(run, index)}_{task}", 0) for index in range(2) for task in (1, 2)]
    else:
        assert jobs == [(job_of(run, index), 0) for index in range(4)]
    wait_until(lambda: not pocket.jobs(), "nothing to be left in the queue")
    assert run.fallback() is None


def test_where_a_second_job_is_refused_the_same_one_goes_on(launch: Launch, pocket: Pocket, one_job_only: str) -> None:
    run = launch("--gpus", "1", *SHORT, program=first_attempts(1), PATH=one_job_only)
    over(run, 200)
    assert causes(run) == ["timeout", "done"], job_log(run)
    assert [(end["job_id"], end["restart_count"]) for end in run.attempts()] == [(job_of(run), 0), (job_of(run), 1)]
    assert "this job starts again, since a successor was refused: " in job_log(run)
    assert "AssocMaxSubmitJobLimit" in says(run, pocket)


def test_where_the_requeue_is_refused_a_successor_goes_on(launch: Launch, pocket: Pocket) -> None:
    run = launch("--gpus", "1", *SHORT, "--continue-by", "requeue", program=first_attempts(1))
    rank_0(run)
    pocket.ask("scontrol", "update", f"JobId={job_of(run)}", "Requeue=0")
    over(run, 200)
    assert causes(run) == ["timeout", "done"], job_log(run)
    assert [end["job_id"] for end in run.attempts()] == [job_of(run), job_of(run, 1)]
    assert "Requested operation is presently disabled" in says(run, pocket)


@pytest.mark.parametrize("continue_by", ["chain", "requeue", pytest.param("array", marks=pytest.mark.nightly)])
@pytest.mark.parametrize("partition", ["preempt", pytest.param("cancel", marks=pytest.mark.nightly)])
@pytest.mark.parametrize("deaf", [False, pytest.param(True, marks=pytest.mark.nightly)])
def test_a_preemption(launch: Launch, pocket: Pocket, continue_by: str, partition: str, deaf: bool) -> None:
    """The ranks leave with 0 inside the grace, which on 22.05 ends a job for good; or only Slurm's kill ends them."""
    then = "signal.signal(signal.SIGTERM, signal.SIG_IGN); wait()" if deaf else "wait()"
    words = ["--gpus", "1", "-p", partition, "--continue-by", continue_by, "--mail-type", "END,REQUEUE"]
    run = launch(*words, program=first_attempts(1, then))
    rank_0(run)
    wait_until(lambda: len(run.jobs()) == (2 if continue_by == "chain" else 1), "the successor")
    pocket.ask("sbatch", "-p", "urgent", "-N2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
    over(run, 200)
    # Where Slurm kills the supervisor as well, its job's next life knows only that it was started again.
    unknown = deaf and (continue_by, partition) == ("requeue", "preempt")
    assert causes(run) == ["requeued" if unknown else "preemption", "done"], job_log(run)
    if deaf:  # others may be gone before the supervisor looks
        told, until = run.stop_word(1).read_text().splitlines()
        assert told == "preemption" and 0 < float(until.removeprefix("until ")) - run.attempts()[0]["start"] < 60
    wait_until(lambda: not pocket.jobs(), "nothing to be left in the queue")
    wait_until(lambda: ended(pocket, run), "the mail of the end")
    assert ended(pocket, run) == [run.attempts()[-1]["job_id"]], job_log(run)


def ended(pocket: Pocket, run: RunDir) -> list[str]:
    """Jobs of a run whose end was mailed."""
    log = pocket.layout.log("mail")
    mailed = re.findall(r"Job_id=(\S+).* Ended", log.read_text() if log.exists() else "")
    return [job for job in mailed if sent_as(job) in {sent_as(record["job"]) for record in run.jobs()}]


def test_slurms_own_requeue_covers_the_time_before_a_successor_waits(
    launch: Launch, pocket: Pocket, one_job_only: str
) -> None:
    run = launch("--gpus", "1", program=first_attempts(1), PATH=one_job_only)
    rank_0(run)
    assert "Requeue=1" in pocket.ask("scontrol", "show", "job", job_of(run))
    node = pocket.ask("squeue", "--noheader", "--format=%N", f"--jobs={job_of(run)}").strip()
    pocket.kill_node(node)
    try:
        over(run, 200)
    finally:
        pocket.start_slurmd(node)
        pocket.wait_ready()
    assert causes(run) == ["requeued", "done"], job_log(run)
    assert [(end["job_id"], end["restart_count"]) for end in run.attempts()] == [(job_of(run), 0), (job_of(run), 1)]
    assert run.attempts()[1]["hosts"] != [node]


def test_once_a_successor_waits_slurm_starts_the_job_no_more(launch: Launch, pocket: Pocket) -> None:
    run = launch("--gpus", "1", program=first_attempts(1))
    rank_0(run)
    wait_until(lambda: len(run.jobs()) == 2, "the successor")
    wait_until(lambda: "Requeue=0" in pocket.ask("scontrol", "show", "job", job_of(run)), "its requeue to be off")


def test_kill_9_of_a_supervisor_in_its_first_moments(launch: Launch, pocket: Pocket) -> None:
    run = launch("--gpus", "1", program=first_attempts(1))
    wait_until(lambda: len(run.jobs()) == 2, "the successor")
    claim = run.read_claim(1)
    assert claim is not None and claim.pid is not None
    os.kill(claim.pid, signal.SIGKILL)
    over(run)
    assert causes(run) == ["crash", "done"], job_log(run)
    assert run.attempts()[1]["job_id"] == job_of(run, 1)


def test_the_users_gpu_hours(launch: Launch, pocket: Pocket) -> None:
    run = launch("--gpus", "2", "--max-gpu-hours", "0.005", program=first_attempts(1))  # 9 s
    over(run)
    assert causes(run) == ["budget"] and not run.done, job_log(run)
    (record,) = run.attempts()
    assert set(record["exits"]) == {"exit 0"} and record["end"] - record["start"] < 18 + 5
    wait_until(lambda: not pocket.jobs(), "the successor to be cancelled")


def test_a_node_that_failed_twice_is_avoided(launch: Launch, pocket: Pocket) -> None:
    program = f"{WAITS}{SAVES}if attempt <= 2: sys.exit(1)\nif attempt == 3: wait()\n"
    run = launch("--gpus", "1", *SHORT, program=program)
    over(run, 200)
    assert causes(run) == ["crash", "crash", "timeout", "done"], job_log(run)
    bad = run.attempts()[0]["hosts"]
    assert [end["hosts"] == bad for end in run.attempts()] == [True, True, True, False]
    assert f"attempts failed on {bad[0]}" in says(run, pocket)


def test_a_run_that_needs_all_nodes_keeps_a_bad_one(launch: Launch, pocket: Pocket) -> None:
    program = f"{WAITS}{SAVES}if attempt <= 2: time.sleep(rank == '1'); sys.exit(1)\nif attempt == 3: wait()\n"
    run = launch("--nodes", "2", "--gpus", "1", *SHORT, program=program)
    over(run, 200)
    assert causes(run) == ["crash", "crash", "timeout", "done"], job_log(run)
    assert "cannot keep away from" in job_log(run)


def test_a_step_that_srun_cannot_start_is_told_in_its_words(launch: Launch, pocket: Pocket) -> None:
    run = launch("--gpus", "1", 'job.srun_args=["--nodelist=nowhere"]', program="")
    over(run)
    assert causes(run) == ["crash"] * 3 and run.attempts()[0]["failed_on"] is None
    assert run.cancelled is not None and run.cancelled["cause"] == "no progress"
    assert "no rank left an exit record: " in run.cancelled["reason"] and "node" in run.cancelled["reason"], job_log(
        run
    )
