"""Submissions that die halfway, on a real Slurm: a run never has two jobs, and the user hears whether it has one."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import launch
from envs.pocket import Pocket, daemons, process
from slurm import commands
from slurm.commands import QueueLine
from slurm.rundir import RunDir
from tests.cluster.conftest import ROOT, Launch, job_log, job_of, over
from tests.waiting import wait_until

LATER = ["--gpus", "1", "--sbatch", "begin=now+1hour"]  # a job that stays in the queue
TRIES = 50


@pytest.fixture
def site(pocket: Pocket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pocket]:
    """The pocket as this process's Slurm, whole and without jobs afterwards, whatever a test did to it."""
    monkeypatch.setenv("SLURM_CONF", str(pocket.slurm_conf))
    monkeypatch.chdir(tmp_path)
    yield pocket
    pocket.start_controller()
    pocket.wait_ready()
    for job in pocket.jobs():
        pocket.ask("scancel", job)
    wait_until(lambda: not pocket.jobs(), "the queue to be empty")


def controller(pocket: Pocket) -> int:
    pid = process.find(daemons.slurmctld(pocket.layout))
    assert pid is not None
    return pid


def queued(run: RunDir) -> list[QueueLine]:
    return [job for job in commands.jobs_of(run.log_folders()) if job.alive]


def instead_of_sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """An sbatch that does this at the real submission of a job; $REAL is Slurm's own. Once: the next one is as always."""
    programs = tmp_path / "bin"
    programs.mkdir(exist_ok=True)
    real = shutil.which("sbatch")
    fake = f"""#!/bin/sh
        REAL={real}
        case "$*" in *--test-only*) exec $REAL "$@" ;; esac
        [ -e {programs}/done ] && exec $REAL "$@"
        touch {programs}/done
        {script}
    """
    (programs / "sbatch").write_text(textwrap.dedent(fake))
    (programs / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")


def say(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """Exit code of launch.py and all that it printed."""
    code = launch.main([*words])
    shown = capsys.readouterr()
    return code, shown.out + shown.err


# --- random kills ---------------------------------------------------------------------------------------


class Launcher:
    """launch.py as a user types it, from a process that has imported it: 50 tries pay for its imports once."""

    def __init__(self, folder: Path, pocket: Pocket) -> None:
        self.folder = folder
        argv = [sys.executable, str(Path(__file__).parent / "cut_short.py")]
        env = {**pocket.env(), "PYTHONPATH": str(ROOT)}
        self.server = subprocess.Popen(argv, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def go(self, words: list[str], kill_after: float | None = None) -> tuple[int, str]:
        """Its exit code, and what it printed."""
        assert self.server.stdin is not None and self.server.stdout is not None
        output = self.folder / f"{self.server.pid}.out"
        output.write_text("")
        self.server.stdin.write(json.dumps([words, str(output), kill_after]) + "\n")
        self.server.stdin.flush()
        return int(self.server.stdout.readline()), output.read_text()


@pytest.fixture
def launchers(site: Pocket, tmp_path: Path) -> Iterator[list[Launcher]]:
    started = [Launcher(tmp_path, site) for _ in range(3)]
    yield started
    for launcher in started:
        launcher.server.communicate()


def test_no_double_submission_in_50_tries_with_random_kills(launchers: list[Launcher], tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    seconds = max(timed(launcher, f"whole{index}") for index, launcher in enumerate(launchers))

    def tries(numbers: range, launcher: Launcher) -> list[int]:
        return [one_try(f"t{number}", launcher, random.Random(number).uniform(0, 1.2 * seconds)) for number in numbers]

    def one_try(name: str, launcher: Launcher, moment: float) -> int:
        """Killed at a random moment; then a user says it again."""
        killed, _ = launcher.go(submit_words(name), moment)
        again = ["resume", name] if (runs / name).exists() else submit_words(name)
        code, said = launcher.go(again)
        assert (code == 0 and "is in the queue" in said) or (code == 78 and "is in the queue already" in said), said
        return killed

    with ThreadPoolExecutor() as pool:
        parts = [range(start, TRIES, len(launchers)) for start in range(len(launchers))]
        killed = [code for codes in pool.map(tries, parts, launchers) for code in codes]
    assert len(killed) == TRIES and killed.count(-signal.SIGKILL) > TRIES / 2
    for number in range(TRIES):
        run = RunDir(runs / f"t{number}")
        assert [job.job_id for job in queued(run)] == [record["job"] for record in run.jobs()], run
        assert len(run.jobs()) == 1 and run.newest_epoch() == 0


@pytest.mark.parametrize("queues", [True, False])
def test_death_at_the_moment_of_the_submission(
    site: Pocket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, queues: bool
) -> None:
    """launch.py and its sbatch die at once, when the job is just in the queue, or just not."""
    sends = '$REAL "$@" >/dev/null; ' if queues else ""
    instead_of_sbatch(tmp_path, monkeypatch, f"{sends}kill -9 0")
    launcher, run = Launcher(tmp_path, site), RunDir(tmp_path / "runs" / "x")
    assert launcher.go(submit_words("x"))[0] == -signal.SIGKILL
    assert len(queued(run)) == queues and not run.jobs() and run.path.exists()
    code, said = launcher.go(["resume", "x"])
    assert (code, "is in the queue already" in said) == ((78, True) if queues else (0, False)), said
    assert [job.job_id for job in queued(run)] == [record["job"] for record in run.jobs()] and len(run.jobs()) == 1
    launcher.server.communicate()


def timed(launcher: Launcher, name: str) -> float:
    """Seconds of a submission that nobody kills; the first one warms up."""
    assert launcher.go(submit_words(f"{name}-warm"))[0] == 0
    began = time.monotonic()
    assert launcher.go(submit_words(name))[0] == 0
    return time.monotonic() - began


def submit_words(name: str) -> list[str]:
    return ["--name", name, *LATER, "--", "true"]


# --- a controller that goes away ------------------------------------------------------------------------


def test_a_stopped_controller_queues_the_job_later_and_resume_finds_it(
    site: Pocket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("slurm.commands.PATIENCE", 0)
    pid = controller(site)
    instead_of_sbatch(tmp_path, monkeypatch, f'kill -STOP {pid}; exec $REAL "$@"')
    try:
        code, said = say(capsys, *submit_words("x"))
        assert code == 1 and "a job of x may be in the queue all the same" in said and "launch.py resume x" in said
        assert say(capsys, "resume", "x")[0] == 1  # still nobody can tell: no second one is sent
    finally:
        os.kill(pid, signal.SIGCONT)
    run = RunDir(tmp_path / "runs" / "x")
    assert not run.jobs()
    code, said = say(capsys, "resume", "x")
    assert code == 78 and "x is in the queue already: job" in said
    assert [job.job_id for job in queued(run)] == [job_of(run)]
    assert "its place in the queue is given up" in say(capsys, "stop", "x")[1] and not queued(run)


def python(pocket: Pocket, code: str) -> str:
    """A shell's line that does this to the pocket `p`."""
    opening = f"from envs.pocket import find, process; p = find({pocket.name!r}); l = p.layout"
    return f'cd {ROOT} && {sys.executable} -c "{opening}; {code}"'


def test_where_an_array_finds_no_places_a_chain_is_sent(
    site: Pocket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    refused = "sbatch: error: AssocMaxSubmitJobLimit\\nsbatch: error: Batch job submission failed: Job violates policy"
    instead_of_sbatch(tmp_path, monkeypatch, f"printf '{refused}\\n' >&2; exit 1")
    code, said = say(capsys, "--continue-by", "array", *submit_words("x"))
    run = RunDir(tmp_path / "runs" / "x")
    assert code == 0 and "goes on by a successor that waits in the queue as x+next" in said
    assert [job.job_id for job in queued(run)] == [job_of(run)] and "continue_by: chain" in (
        run.path / "job.yaml"
    ).read_text()
    assert say(capsys, "stop", "x")[0] == 0 and not queued(run)
    code, said = say(capsys, "--continue-by", "array", *submit_words("y"))
    run = RunDir(tmp_path / "runs" / "y")
    assert code == 0 and "goes on by an array of 8 jobs" in said
    assert [job.job_id for job in queued(run)] == [f"{job_of(run)}_{task}" for task in range(1, 9)] and str(
        job_of(run)
    ) in say(capsys, "status", "y")[1]
    assert "is in the queue already" in say(capsys, "resume", "y")[1]
    assert say(capsys, "stop", "y")[0] == 0 and not queued(run)


def test_a_controller_that_dies_with_the_request_has_queued_nothing(
    site: Pocket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stopped and then killed: sbatch hears what it may also hear when the job will be queued."""
    pid = controller(site)
    kill = f"(sleep 1; kill -9 {pid}; {python(site, 'p.start_controller()')}) >/dev/null 2>&1 &"
    instead_of_sbatch(tmp_path, monkeypatch, f'kill -STOP {pid}\n{kill}\nexec $REAL "$@"')
    code, said = say(capsys, *submit_words("x"))
    run = RunDir(tmp_path / "runs" / "x")
    assert code == 1 and "nothing was queued" in said and not run.path.exists() and not queued(run)
    assert say(capsys, *submit_words("x"))[0] == 0 and len(queued(run)) == 1


def test_a_controller_that_is_down_for_a_while_is_waited_for(
    site: Pocket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It refuses the connection, so nothing can have been queued: the same sbatch is sent again."""
    silent = "not process.listens((str(l.controller_address), l.controller_port))"
    kill = python(site, f"p.stop_controller(crash=True); process.wait_until(lambda: {silent}, str, 20)")
    start = python(site, "p.start_controller()")
    instead_of_sbatch(tmp_path, monkeypatch, f'({kill})\n$REAL "$@"; code=$?\n({start})\nexit $code')
    assert say(capsys, *submit_words("x"))[0] == 0
    run = RunDir(tmp_path / "runs" / "x")
    assert [job.job_id for job in queued(run)] == [job_of(run)]


def test_a_controller_that_is_away_is_no_mistake_of_the_user(
    site: Pocket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("slurm.commands.PATIENCE", 0)
    site.stop_controller()
    code, said = say(capsys, *submit_words("x"))
    assert code == 1 and "Unable to contact slurm controller" in said and said.count("\n") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("queues", [True, False])
def test_an_sbatch_that_is_killed(
    site: Pocket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], queues: bool
) -> None:
    sends = '$REAL "$@" >/dev/null; ' if queues else ""
    instead_of_sbatch(tmp_path, monkeypatch, f"{sends}kill -9 $$")
    code, said = say(capsys, *submit_words("x"))
    run = RunDir(tmp_path / "runs" / "x")
    if queues:
        assert code == 0 and f"job {job_of(run)} is in the queue" in said and len(queued(run)) == 1
    else:
        assert code == 1 and "nothing was queued" in said and not run.path.exists()


def test_a_disk_that_fills_up_just_now(
    site: Pocket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*words: object, **more: object) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    with monkeypatch.context() as patch:
        patch.setattr(RunDir, "record_job", full)
        code, said = say(capsys, *submit_words("x"))
    run = RunDir(tmp_path / "runs" / "x")
    job = queued(run)[0].job_id
    assert code == 1 and f"job {job} is in the queue, but {run.path} takes no more files (Disk quota exceeded)" in said
    assert f"job {job} waits" in say(capsys, "status", "x")[1] and [job] == [record["job"] for record in run.jobs()]


# --- others who send --------------------------------------------------------------------------------------


def test_a_job_sent_by_hand_is_seen(site: Pocket, launch: Launch, capsys: pytest.CaptureFixture[str]) -> None:
    run = launch(*LATER, program="")
    job = queued(run)[0].job_id
    (run.path / "jobs.jsonl").unlink()  # as after a plain `sbatch submission.sh`
    code, said = say(capsys, "--runs-dir", str(run.path.parent), "resume", run.name)
    assert code == 78 and f"is in the queue already: job {job} is PENDING" in said


def test_a_run_that_is_sent_twice_by_hand_runs_once(site: Pocket, launch: Launch) -> None:
    program = "import os, time\nwhile not os.path.exists('go'): time.sleep(0.05)\n"
    run = launch("--gpus", "1", program=program)
    wait_until(lambda: run.newest_epoch() == 1, "the first attempt")
    second = site.ask("sbatch", "--parsable", str(run.script)).strip()
    log = run.logs / f"job-{second}.log"
    wait_until(lambda: log.exists() and "leaving everything to it" in log.read_text(), "the second job to leave")
    (run.path.parent.parent / "go").touch()
    over(run)
    assert run.done and run.newest_epoch() == 1, job_log(run)


def test_a_successor_that_was_not_noted_is_found(site: Pocket, launch: Launch) -> None:
    """As after the death of a supervisor between its sbatch and its note."""
    from slurm.config import read_job
    from slurm.environment import Allocation
    from slurm.scheduler import Slurm

    run = launch(*LATER, program="")
    first = job_of(run)
    second = commands.submit(run.script, after=first, name=f"{run.name}+next")
    supervisor = Slurm(run, read_job(run.path), Allocation(first, 0, "node1"))
    assert supervisor.queue_successor() == f"job {second} waits to go on after this one"
    assert [(record["job"], record["after"]) for record in run.jobs()] == [(first, None), (second, first)]
    assert len(queued(run)) == 2
    supervisor.cancel_successor()
    assert [job.job_id for job in queued(run)] == [first]


def test_a_hostile_shell(site: Pocket, launch: Launch) -> None:
    """What overrides a script's flags, and an outer job's variables, change neither the job nor its judgement."""
    sbatch = {
        "TIMELIMIT": "1",
        "PARTITION": "nope",
        "QOS": "nope",
        "CONSTRAINT": "nope",
        "TEST_ONLY": "1",
        "RESERVATION": "no",
    }
    slurm = {"JOB_ID": "1", "NTASKS": "7", "CPU_BIND": "quiet,mask_cpu:0x1", "MEM_PER_CPU": "5", "NNODES": "9"}
    hostile = {f"SBATCH_{key}": value for key, value in sbatch.items()} | {
        f"SLURM_{key}": v for key, v in slurm.items()
    }
    run = launch("--gpus", "2", "-t", "00:20:00", "-p", "preempt", program=SHOW, **hostile, RANK="3", WORLD_SIZE="9")
    facts = site.ask("scontrol", "--oneliner", "show", "job", job_of(run))
    assert all(word in facts for word in ("TimeLimit=00:20:00", "Partition=preempt", "NumNodes=1", "NumTasks=2"))
    over(run)
    logs = [(run.attempt_dir(1) / f"rank-{rank:04d}.log").read_text().split() for rank in range(2)]
    assert logs == [["0", "2", job_of(run), "None"], ["1", "2", job_of(run), "None"]]


SHOW = """
import os
print(*(os.environ.get(key) for key in ("RANK", "WORLD_SIZE", "SLURM_JOB_ID", "SLURM_MEM_PER_CPU")))
"""


def test_the_queue_is_asked_little(
    site: Pocket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a submission costs the controller."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("scontrol", "sinfo", "squeue", "sbatch", "sacctmgr"):
        real = shutil.which(name)
        (programs / name).write_text(f'#!/bin/sh\necho "{name}" >> {tmp_path}/calls\nexec {real} "$@"\n')
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    assert say(capsys, *submit_words("x"))[0] == 0
    assert (tmp_path / "calls").read_text().split() == ["scontrol", "sinfo", "sbatch", "squeue", "sbatch"]
