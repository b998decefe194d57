"""Foreign commands on a real Slurm: ranks, exits, signals, cancels, continuation."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest
import submitit

from envs.pocket import Pocket
from slurm.attempt import STEP_OUTLIVES
from slurm.rundir import RunDir
from tests.cluster.conftest import Launch, causes, job_log, job_of, over
from tests.launchers import LAUNCHERS
from tests.waiting import wait_until

TABLE = """
import json, os
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
table = {name: os.environ[name] for name in names}
table["host"] = os.uname().nodename
table["hostfile"] = open(os.environ["OUTLAST_HOSTFILE"]).read()
with open(os.path.join(os.environ["OUTLAST_RUN_DIR"], "table-" + os.environ["RANK"]), "w") as file:
    json.dump(table, file)
"""

# Says that it runs, and where; then waits until it is told to go on.
WAITS = """
import os, signal, sys, time
run, rank = os.environ["OUTLAST_RUN_DIR"], os.environ["RANK"]
attempt = int(os.environ["OUTLAST_ATTEMPT"])
if rank == "0":
    with open(f"{run}/.pid", "w") as file:
        file.write(str(os.getpid()))
    os.rename(f"{run}/.pid", f"{run}/pid-{attempt}-{rank}")
def wait():
    while True:
        time.sleep(0.05)
"""


def tables(run: RunDir) -> list[dict[str, str]]:
    return [json.loads((run.path / f"table-{rank}").read_text()) for rank in range(8)]


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_the_same_rank_table_from_every_launcher(launch: Launch, tmp_path: Path, launcher: str) -> None:
    (tmp_path / "table.py").write_text(TABLE)
    words = ["--nodes", "2", "--gpus", "4", "--launcher", launcher]
    run = launch(*words, "--", sys.executable, "-m", "table", PYTHONPATH=str(tmp_path), name=launcher)
    over(run)
    assert causes(run) == ["done"], job_log(run)
    found = tables(run)
    for rank, table in enumerate(found):
        assert {key: table[key] for key in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK")} == {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank % 4),
            "WORLD_SIZE": "8",
            "LOCAL_WORLD_SIZE": "4",
            "GROUP_RANK": str(rank // 4),
        }
        assert table["host"] == f"node{rank // 4 + 1}"
        assert table["hostfile"] == "node1 slots=4\nnode2 slots=4\n"
    assert len({(table["MASTER_ADDR"], table["MASTER_PORT"]) for table in found}) == 1
    assert not found[0]["MASTER_ADDR"].startswith("127.")
    assert not 32768 <= int(found[0]["MASTER_PORT"]) <= 60999


def test_submitits_job_reads_the_state(launch: Launch, pocket: Pocket, monkeypatch: pytest.MonkeyPatch) -> None:
    from slurm.submit import RunJob

    monkeypatch.setenv("SLURM_CONF", str(pocket.slurm_conf))
    run = launch(program="print('hello')")
    job = RunJob(folder=run.path / "submitit", job_id=job_of(run))
    assert isinstance(job, submitit.Job)
    wait_until(lambda: job.watcher.get_state(job.job_id, mode="force") == "COMPLETED", "the state COMPLETED")
    assert run.script.read_text() == (run.path / "submitit" / f"{job.job_id}_submission.sh").read_text()


@pytest.mark.parametrize("milliseconds", [0, 50, 500, 3000])
def test_ranks_that_leave_one_after_the_other_all_finish(launch: Launch, milliseconds: int) -> None:
    program = f"""
    import os, sys, time
    time.sleep(int(os.environ["RANK"]) * {milliseconds} / 1000 / 3)
    sys.exit(75 if os.environ["OUTLAST_ATTEMPT"] == "1" else 0)
    """
    run = launch("--nodes", "2", "--gpus", "2", program=program)
    over(run)
    assert causes(run) == ["signal", "done"]
    assert run.attempts()[0]["exits"] == {"exit 75": 4}


def test_kill_9_of_a_rank_ends_the_step_at_once_and_the_run_goes_on(launch: Launch) -> None:
    program = WAITS + "if attempt == 1: wait()\n"
    run = launch("--nodes", "2", "--gpus", "2", program=program)
    pid = wait_until(lambda: next(run.path.glob("pid-1-0"), None), "rank 0").read_text()
    killed = kill_9(int(pid))
    over(run)
    assert causes(run) == ["crash", "done"]
    assert sum(run.attempts()[0]["exits"].values()) == 4 and run.attempts()[0]["reason"].startswith("rank 0: signal 9")
    assert run.attempts()[0]["end"] - killed < STEP_OUTLIVES
    assert len(run.jobs()) == 2  # the second attempt ran in the same allocation; one successor had been queued


def kill_9(pid: int) -> float:
    os.kill(pid, signal.SIGKILL)
    return time.time()


def test_scancel_never_comes_back(launch: Launch, pocket: Pocket) -> None:
    run = launch("--nodes", "2", "--gpus", "2", program=WAITS + "wait()\n")
    wait_until(lambda: next(run.path.glob("pid-1-0"), None), "rank 0")
    wait_until(lambda: len(run.jobs()) == 2, "the successor")
    pocket.ask("scancel", job_of(run))
    wait_until(lambda: not pocket.jobs(), "the queue to be empty")
    assert run.cancelled is not None and run.cancelled["cause"] == "cancel"
    assert run.newest_epoch() == 1


def test_scancel_that_kills_the_supervisor_never_comes_back(launch: Launch, pocket: Pocket) -> None:
    run = launch("--nodes", "2", "--gpus", "2", program=WAITS + "wait()\n")
    wait_until(lambda: next(run.path.glob("pid-1-0"), None), "rank 0")
    wait_until(lambda: len(run.jobs()) == 2, "the successor")
    supervisor = next(pid for pid in processes() if f"slurm.supervisor\0{run.path}" in command_line(pid))
    slurmstepd = int(Path(f"/proc/{supervisor}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(slurmstepd, signal.SIGSTOP)  # it must not report the supervisor's death before the scancel has come
    kill_9(supervisor)
    pocket.ask("scancel", job_of(run))
    os.kill(slurmstepd, signal.SIGCONT)
    wait_until(lambda: not pocket.jobs(), "the queue to be empty")
    over(run)
    assert run.cancelled is not None and run.cancelled["cause"] == "cancel", job_log(run)
    assert run.newest_epoch() == 1


def processes() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def command_line(pid: int) -> str:
    try:
        return (Path("/proc") / str(pid) / "cmdline").read_text()
    except OSError:
        return ""


def test_a_time_limit_is_continued_by_the_chain(launch: Launch, pocket: Pocket) -> None:
    program = WAITS + "if attempt == 1: signal.signal(signal.SIGTERM, lambda *a: sys.exit(0)); wait()\n"
    run = launch("--nodes", "2", "--gpus", "2", "-t", "00:01:00", "job.lead_seconds=55", program=program)
    over(run)
    assert causes(run) == ["timeout", "done"], job_log(run)
    first, second = run.attempts()
    assert second["job_id"] == job_of(run, 1) != first["job_id"]
    assert second["start"] - first["end"] < 10
    wait_until(lambda: not pocket.jobs(), "the third job to be cancelled")


def test_requeue_continues_under_the_same_job_id(launch: Launch) -> None:
    program = WAITS + "if attempt == 1: signal.signal(signal.SIGTERM, lambda *a: sys.exit(0)); wait()\n"
    words = ["-t", "00:01:00", "job.lead_seconds=55", "--continue-by", "requeue"]
    run = launch("--nodes", "2", "--gpus", "2", *words, program=program)
    over(run)
    assert causes(run) == ["timeout", "done"], job_log(run)
    first, second = run.attempts()
    assert second["job_id"] == first["job_id"] and second["restart_count"] == 1


@pytest.mark.parametrize("continue_by", ["chain", "requeue", pytest.param("array", marks=pytest.mark.nightly)])
def test_scancel_during_the_grace_of_a_preemption_never_comes_back(
    launch: Launch, pocket: Pocket, continue_by: str
) -> None:
    program = WAITS + "signal.signal(signal.SIGTERM, lambda *a: open(run + '/grace', 'w').close()); wait()\n"
    run = launch("--nodes", "2", "--gpus", "2", "-p", "preempt", "--continue-by", continue_by, program=program)
    wait_until(lambda: next(run.path.glob("pid-1-0"), None), "rank 0")
    wait_until(lambda: len(run.jobs()) == (2 if continue_by == "chain" else 1), "the successor")
    urgent = pocket.ask(
        "sbatch", "--parsable", "-p", "urgent", "-N2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1"
    ).strip()
    wait_until(lambda: (run.path / "grace").exists(), "the grace signal")
    pocket.ask("scancel", job_of(run))
    wait_until(lambda: not pocket.jobs(), f"the queue to be empty, {urgent} too")
    assert run.newest_epoch() == 1, job_log(run)
    if continue_by == "chain":
        assert run.cancelled is not None and run.cancelled["cause"] == "cancel", job_log(run)


@pytest.mark.nightly
@pytest.mark.parametrize("continue_by", ["chain", "array", "requeue"])
def test_of_twenty_cancels_at_random_times_none_comes_back(launch: Launch, pocket: Pocket, continue_by: str) -> None:
    """While they wait, as their supervisor starts, while ranks start and run; with the queue empty nothing is left that
    could come back."""
    chance = random.Random(continue_by)
    for batch in range(5):
        names = [f"{continue_by}-{batch}-{number}" for number in range(4)]
        words = ["--nodes", "2", "--gpus", "2", "--continue-by", continue_by]
        runs = [launch(*words, program=WAITS + "wait()\n", name=name) for name in names]
        for run in runs:
            time.sleep(chance.random() * 2)  # the moment is what is tested, nothing waits for it
            pocket.ask("scancel", job_of(run))
        wait_until(lambda: not pocket.jobs(), "the queue to be empty")
        assert [run.newest_epoch() for run in runs if run.newest_epoch() > 1] == []
        assert all(run.cancelled or not run.newest_epoch() for run in runs), [causes(run) for run in runs]
