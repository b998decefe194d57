"""Submissions that were cut short: what is known of them, what is looked for, and when none may follow."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from settings import ConfigError
from slurm import commands, launches
from slurm.errors import CommandFailed
from slurm.rundir import RunDir
from slurm.watch.status import status
from slurm.watch.status_text import as_text
from tests.slurm.conftest import Tool
from tests.waiting import wait_until

SLEEPER = [sys.executable, "-S", "-c", "import sys; sys.stdin.read()"]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tool: Tool) -> RunDir:
    """A run on a site whose squeue prints what stands in the file `queue`."""
    run = RunDir(tmp_path / "a run 100%")
    run.path.mkdir()
    tool("squeue", f'cat "{tmp_path}/queue"')
    (tmp_path / "queue").touch()
    monkeypatch.setattr(launches, "SETTLING_SECONDS", 0)
    return run


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(SLEEPER, stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.communicate()


def queue(run: RunDir, *jobs: tuple[str, str]) -> None:
    """Ids and states of the run's jobs in the queue, beside those of another run."""
    logs = str(run.logs).replace("%", "%%")
    lines = [f"{job}|{state}|None|30:00|(null)|N/A|30:00|{logs}/job-%j.log" for job, state in jobs]
    other = "900|RUNNING|None|30:00|(null)|N/A|30:00|/elsewhere/logs/job-%j.log"
    (run.path.parent / "queue").write_text("\n".join([other, *lines]) + "\n")


def begin(run: RunDir, **facts: object) -> launches.Launch:
    """A submission by a process that has ended, or by whatever `facts` say."""
    launch = launches.begin(run, launches.newest(run) + 1)
    path = run.path / "launches" / f"{launch.number:04d}" / "launch.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "started": "never", **facts}))
    return launch


def test_nothing_to_settle(run: RunDir) -> None:
    assert launches.newest(run) == 0 and launches.reconcile(run) is None
    launches.begin(run, 1)
    assert launches.unsettled(run)
    run.record_job("812", None)
    assert launches.reconcile(run) is None


def test_nothing_was_queued(run: RunDir) -> None:
    run.record_job("700", None)
    queue(run, ("700", "TIMEOUT"))
    begin(run)
    assert "has queued nothing" in str(launches.reconcile(run))
    assert launches.unsettled(run) is None and launches.newest(run) == 1


def test_a_sweeps_task_that_ended_is_no_new_job(run: RunDir) -> None:
    """Else the whole array would count as this run's, and its stop would cancel the others."""
    run.record_job("700_3", None)
    queue(run, ("700_3", "FAILED"))
    begin(run)
    assert "has queued nothing" in str(launches.reconcile(run)) and len(run.jobs()) == 1


def test_the_job_is_found_by_its_log(run: RunDir) -> None:
    run.record_job("700", None)
    queue(run, ("700", "TIMEOUT"), ("812", "PENDING"), ("811", "CANCELLED"))
    begin(run)
    assert "queued job 812, which is PENDING" in str(launches.reconcile(run))
    assert [record["job"] for record in run.jobs()] == ["700", "812"] and launches.unsettled(run) is None


def test_status_tells_what_is_not_known(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "PATIENCE", 0)
    queue(run, ("812", "PENDING"))
    begin(run)
    squeue = run.path.parent / "tools" / "squeue"
    working = squeue.read_text()
    squeue.write_text("#!/bin/sh\necho 'slurm_load_jobs error: Socket timed out on send/recv operation' >&2; exit 1\n")
    assert "a job may be in the queue" in as_text(status([run])) and not run.jobs()
    squeue.write_text(working)
    assert "waiting (job 812 waits" in as_text(status([run])) and launches.unsettled(run) is None


def test_a_sender_that_lives_is_waited_for(run: RunDir, sleeper: subprocess.Popen[bytes]) -> None:
    begin(run, pid=sleeper.pid, started=launches._started(sleeper.pid))
    with pytest.raises(CommandFailed, match=f"is being submitted by process {sleeper.pid}"):
        launches.reconcile(run)
    sleeper.kill()  # a zombie, until it is reaped: dead all the same
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert "has queued nothing" in str(launches.reconcile(run))


def test_an_sbatch_that_outlives_its_launch_is_waited_for(run: RunDir) -> None:
    begin(run)
    argv = [*SLEEPER, "sbatch", f"{run.path}/submitit/.submission_file_1.sh"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE) as sbatch:
        wait_until(lambda: launches._sbatch_runs(run), "its command line: empty in the midst of an exec")
        with pytest.raises(CommandFailed, match="try again when it has ended"):
            launches.reconcile(run)
        sbatch.kill()
    assert "has queued nothing" in str(launches.reconcile(run))


def test_on_another_host_only_time_tells(run: RunDir) -> None:
    launch = begin(run, host="elsewhere")
    with pytest.raises(CommandFailed, match=r"on elsewhere: try again in \d+ s"):
        launches.reconcile(run)
    launches.end(run, launch)
    begin(run, host="elsewhere", time=0.0)
    assert "has queued nothing" in str(launches.reconcile(run))


def test_a_job_that_nobody_noted_keeps_its_place(run: RunDir) -> None:
    queue(run, ("812", "COMPLETED"))
    launches.check_free(run)
    queue(run, ("812", "COMPLETED"), ("813", "PENDING"))
    with pytest.raises(ConfigError, match="is in the queue already: job 813 is PENDING"):
        launches.check_free(run)


def _begin(folder: str) -> bool:
    try:
        launches.begin(RunDir(Path(folder)), 1)
    except CommandFailed:
        return False
    return True


def test_one_of_many_wins(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        assert pool.map(_begin, [str(tmp_path)] * 20).count(True) == 1
    assert os.listdir(tmp_path / "launches") == ["0001"]
