"""What a supervisor does when a signal comes between two attempts, and when Slurm answers late, with a refusal or not
at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from settings import dump_yaml, to_plain
from slurm import commands, supervisor
from slurm.commands import JobFacts
from slurm.config import make_job
from slurm.environment import Allocation
from slurm.errors import CommandFailed, ControllerAway
from slurm.exits import CONFIG
from slurm.rundir import RunDir
from slurm.scheduler import Slurm
from slurm.supervisor import PATIENCE, Supervisor
from tests.slurm.conftest import ROOT

JOB = make_job({"name": "sft", "gpus_per_node": 1, "continue_by": "chain", "poll_seconds": 0.01}, "test")
AWAY = ControllerAway("scontrol: Socket timed out")


def facts(state: str, **more: object) -> JobFacts:
    known = {"reason": "None", "restarts": 0, "end_time": None, "preempt_time": None, **more}
    return JobFacts(job_id="812", name="sft", state=state, **known)  # type: ignore[arg-type]


@pytest.fixture
def ours(tmp_path: Path) -> Supervisor:
    """In its first attempt, as job 813 behind job 812."""
    run = RunDir(tmp_path / "sft")
    (run.path / "claims").mkdir(parents=True)
    one = Supervisor(run, JOB, Slurm(run, JOB, Allocation("813", 0, "n1")), "812")
    assert one.claim() is not None
    return one


@pytest.fixture
def blocked() -> Iterator[None]:
    """Stop signals wait until they are asked for, as in the supervisor's own process."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, supervisor.STOP_SIGNALS)
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


@pytest.mark.parametrize(
    ("signum", "found", "lost", "ended"),
    [
        (None, facts("RUNNING"), False, None),
        (signal.SIGTERM, facts("RUNNING"), False, None),  # a warning of Slurm's: the new ranks hear of it themselves
        (signal.SIGTERM, facts("COMPLETING", preempt_time=1.0), True, None),
        (signal.SIGTERM, facts("CANCELLED"), False, "cancel"),
        (signal.SIGINT, facts("RUNNING"), False, "stop"),
    ],
)
def test_a_signal_while_new_ranks_are_to_start(
    ours: Supervisor,
    blocked: None,
    monkeypatch: pytest.MonkeyPatch,
    signum: int | None,
    found: JobFacts,
    lost: bool,
    ended: str | None,
) -> None:
    monkeypatch.setattr(commands, "show_job", lambda job_id: found)
    monkeypatch.setattr(commands, "jobs_of", lambda folders: [])
    if signum is not None:
        signal.pthread_kill(threading.get_ident(), signum)
    assert ours.lost_while_waiting(0.01 if signum is None else 60) == lost
    over = ours.user_ended()  # what the next attempt asks first
    assert ((ours.run.cancelled or {}).get("cause") if over else None) == ended


def test_of_a_job_that_slurm_does_not_tell_of_its_own_word_counts(
    ours: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def silent(job_id: str) -> JobFacts:
        asked.append(job_id)
        raise AWAY

    monkeypatch.setattr(commands, "show_job", silent)
    assert ours.predecessor_cause("812") == "crash" and asked == ["812"] * PATIENCE
    ours.run.record_attempt({"attempt": 1, "job_id": "812", "cause": "timeout"})
    assert ours.predecessor_cause("812") == "timeout"
    assert ours.predecessor_cause(None) == "crash" and ours.predecessor_cause("813") == "requeued"


def test_a_job_that_still_leaves_its_nodes_is_waited_for(ours: Supervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [facts("COMPLETING"), AWAY, facts("COMPLETING"), facts("COMPLETED", reason="TimeLimit")]

    def next_answer(job_id: str) -> JobFacts:
        answer = answers.pop(0)
        if isinstance(answer, CommandFailed):
            raise answer
        return answer

    monkeypatch.setattr(commands, "show_job", next_answer)
    assert ours.predecessor_cause("812") == "timeout" and not answers


def test_a_hand_over_that_slurm_refuses_is_tried_again_and_then_the_user_is_told(
    ours: Supervisor, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers: list[str | CommandFailed] = [AWAY, "job 814 goes on"]

    def go_on() -> str:
        answer = answers.pop(0) if answers else AWAY
        if isinstance(answer, CommandFailed):
            raise answer
        return answer

    monkeypatch.setattr(ours.scheduler, "go_on", go_on)
    assert ours.hand_over() == ours.scheduler.unfinished
    assert "nobody goes on yet" in capsys.readouterr().out
    assert ours.hand_over() == 1 and "launch.py resume sft" in capsys.readouterr().out


def test_what_slurm_refuses_at_a_runs_end_ends_nothing_else(
    ours: Supervisor, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused() -> None:
        raise CommandFailed("scontrol: Access/permission denied")

    for name in ("mail_the_end", "cancel_successor"):
        monkeypatch.setattr(ours.scheduler, name, refused)
    ours.mail_the_end()
    ours.cancel_run("scancel")
    said = capsys.readouterr().out
    assert "no mail will tell of the end: scontrol: Access" in said and "could not be cancelled: scontrol" in said
    assert (ours.run.cancelled or {}).get("cause") == "cancel"


def test_who_was_fenced_changes_nothing_in_slurm(ours: Supervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ours.run.claim("900", 0, after=1) is not None
    for name in ("mail_the_end", "cancel_successor", "queue_successor", "go_on"):
        monkeypatch.setattr(ours.scheduler, name, lambda: pytest.fail("another attempt owns the run"))
    ours.mail_the_end()
    ours.cancel_run("scancel")
    ours.queue_successor()
    assert ours.follow(None) == 0 and not ours.run.over


Edit = Callable[[Path], object]


@pytest.mark.parametrize(
    ("edit", "code", "said"),
    [
        (lambda run: None, 1, "this is no Slurm job: submit it with sbatch"),
        (lambda run: (run / "job.yaml").write_text("name: [\n"), CONFIG, "job.yaml"),
        (lambda run: (run / "job.yaml").unlink(), CONFIG, "job.yaml"),
    ],
)
def test_a_supervisor_that_cannot_begin_says_so_in_a_line(tmp_path: Path, edit: Edit, code: int, said: str) -> None:
    (tmp_path / "job.yaml").write_text(dump_yaml(to_plain(JOB)))
    edit(tmp_path)
    argv = [sys.executable, "-P", "-m", "slurm.supervisor", str(tmp_path)]
    outside = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    done = subprocess.run(argv, env={**outside, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (code, "") and said in done.stdout and done.stdout.count("\n") == 1
