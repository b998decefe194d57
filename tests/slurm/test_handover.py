"""A run that another job, another shell or nobody goes on with."""

from __future__ import annotations

from pathlib import Path

import pytest

from slurm import commands, control
from slurm.commands import JobFacts, QueueLine
from slurm.config import make_job
from slurm.doctor.exam import Exam
from slurm.doctor.job import SILENT, Started, Watch
from slurm.environment import Allocation
from slurm.errors import ControllerAway
from slurm.exits import CONTINUE
from slurm.rundir import RunDir, Sweep
from slurm.scheduler import Slurm
from slurm.supervisor import Supervisor
from slurm.walltime import Walltime
from tests.slurm.conftest import Start

JOB = make_job({"name": "sft", "gpus_per_node": 1, "continue_by": "chain", "exclude_bad_nodes": False}, "test")


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    (tmp_path / "sft" / "claims").mkdir(parents=True)
    return RunDir(tmp_path / "sft")


def line(job_id: str, state: str, after: str | None = None) -> QueueLine:
    return QueueLine(job_id, state, "None", "1:00", after, "x")


def test_a_successor_that_was_cancelled_goes_on_with_nothing(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = [line("813", "PENDING", after="812")]
    monkeypatch.setattr(commands, "jobs_of", lambda folders: waiting)
    monkeypatch.setattr(commands, "update", lambda job_id, **fields: None)
    scheduler = Slurm(run, JOB, Allocation("812", 0, "n1"))
    assert scheduler.queue_successor() == "job 813 waits to go on after this one"
    assert scheduler.go_on() == "job 813 goes on"
    waiting.clear()
    assert scheduler.go_on() == ("job 813, which was to go on, is not in the queue any more: launch.py resume goes on")
    monkeypatch.setattr(commands, "jobs_of", lambda folders: (_ for _ in ()).throw(ControllerAway("no answer")))
    assert scheduler.go_on() == "job 813 goes on"  # nobody says otherwise


@pytest.mark.parametrize("state", ["RUNNING", "SUSPENDED"])
def test_a_run_that_slurm_has_suspended_saves_when_it_is_stopped(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    run.record_job("812", after=None)
    monkeypatch.setattr(commands, "queue", lambda jobs: {"812": line("812", state)})
    monkeypatch.setattr(commands, "cancel", lambda *jobs: pytest.fail("it was to save"))
    monkeypatch.setattr(control.launches, "reconcile", lambda run: None)
    [told] = control.stop([run], "enough")
    assert "saves at its next step" in told and run.stop_file.exists() and run.cancelled is None


def test_an_allocation_from_which_the_user_has_taken_the_run_is_no_rival(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It still runs: a shell of salloc's, in which the run was ended by Ctrl-C."""
    run.claim("900", 0, after=0)
    facts = JobFacts("900", "sft-shell", "RUNNING", "None", 0, None, None)
    monkeypatch.setattr(commands, "show_job", lambda job_id: facts)
    supervisor = Supervisor(run, JOB, Slurm(run, JOB, Allocation("812", 0, "n1")), None)
    assert supervisor.rival() == "900"
    (run.path / "resumed").write_text("1\n")
    assert supervisor.rival() is None


def test_a_controller_that_is_silent_once_ends_no_look_at_the_nodes(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [ControllerAway("Socket timed out"), {"812": line("812", "PENDING")}, {}]

    def queue(jobs: list[str]) -> dict[str, QueueLine]:
        answer = answers.pop(0)
        if isinstance(answer, ControllerAway):
            raise answer
        return answer

    monkeypatch.setattr(commands, "queue", queue)
    watch = Watch(Exam(JOB, run), Started("812", None), lambda words: None)
    lives = []
    while answers:
        watch.next_look = 0.0
        lives.append(watch.lives())
    assert lives == [True, True, False]
    watch.alive, answers = True, [ControllerAway("Socket timed out")] * SILENT
    with pytest.raises(ControllerAway):
        while answers:
            watch.next_look = 0.0
            watch.lives()


def test_who_leaves_a_run_in_the_foreground_that_is_not_done_says_so_by_its_exit_code(start: Start) -> None:
    program = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *a: sys.exit(75)); time.sleep(60)"
    assert start(program, walltime=Walltime(seconds=4), lead_seconds=3, continue_by="none").wait(120) == CONTINUE


def test_runs_of_a_sweep_that_a_cut_call_has_only_noted_are_none_of_its_runs(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path)
    sweep.write([{"run": name, "values": {}} for name in ("a", "b")], [])
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "job.yaml").touch()
    assert [run.name for run in sweep.runs] == ["a"]
