"""How a foreign command is asked to stop, and how its progress is seen."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import flags
from settings import ConfigError
from slurm import progress
from slurm.causes.cause import decide
from slurm.config import make_job
from slurm.node import below
from slurm.rundir import RunDir
from slurm.walltime import Walltime
from slurm.watch.status import status
from tests.launchers import DEEPSPEED_AT_NIGHT
from tests.slurm.conftest import Start, causes
from tests.waiting import wait_until

# Notes every stop signal that it hears, and leaves when told to by a file.
NOTES = """
import os, signal, sys, time
run, rank, attempt = os.environ["OUTLAST_RUN_DIR"], os.environ["RANK"], os.environ["OUTLAST_ATTEMPT"]
def note(signum, frame):
    with open(f"{run}/heard-{rank}", "a") as file:
        file.write(signal.Signals(signum).name + "\\n")
for name in ("SIGTERM", "SIGUSR1", "SIGUSR2", "SIGINT"):
    signal.signal(getattr(signal, name), note)
open(f"{run}/ready-{rank}", "w").close()
while not os.path.exists(f"{run}/leave") and attempt == "1":
    time.sleep(0.02)
"""


def ready(run: RunDir, ranks: int = 2) -> None:
    files = [run.path / f"ready-{rank}" for rank in range(ranks)]
    wait_until(lambda: all(file.exists() for file in files), "the ranks", 120)


def heard(run: RunDir, rank: int = 0) -> list[str]:
    file = run.path / f"heard-{rank}"
    return file.read_text().split() if file.exists() else []


def stop_file(run: RunDir, process: subprocess.Popen[str]) -> None:
    run.stop_file.write_text("enough\n")


def ctrl_c(run: RunDir, process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGINT)


def to_the_supervisor(run: RunDir, process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGTERM)


def to_the_nodes_shim(run: RunDir, process: subprocess.Popen[str]) -> None:
    os.kill(below.shims_below(process.pid)[0], signal.SIGTERM)


def to_every_shim(run: RunDir, process: subprocess.Popen[str]) -> None:
    """As where Slurm signals every process: a lower shim hears it from two sides."""
    upper = below.shims_below(process.pid)[0]
    for pid in [upper, *below.shims_below(upper)]:
        os.kill(pid, signal.SIGTERM)


def leave(run: RunDir) -> None:
    """Let the program go when each has heard; a second notice of the same source would still come before it is gone."""
    (run.path / "leave").touch()


SOURCES = [stop_file, ctrl_c, to_the_supervisor, to_the_nodes_shim, to_every_shim]
BY_NIGHT = [pytest.param("torchrun", one, marks=pytest.mark.nightly) for one in SOURCES[1:4]]
BY_NIGHT += [pytest.param("deepspeed", one, marks=DEEPSPEED_AT_NIGHT.marks) for one in SOURCES]


@pytest.mark.parametrize(
    ("launcher", "source"),
    # An agent takes seconds to start: the file, and a signal that comes from two sides, by day.
    [*(("fork", one) for one in SOURCES), ("torchrun", stop_file), ("torchrun", to_every_shim), *BY_NIGHT],
)
def test_every_source_is_told_once_and_by_the_wished_signal(
    run: RunDir, start: Start, launcher: str, source: Callable[[RunDir, subprocess.Popen[str]], None]
) -> None:
    process = start(NOTES, gpus_per_node=2, launcher=launcher, stop_signal="USR2")
    ready(run)
    source(run, process)
    wait_until(lambda: heard(run, 0) and heard(run, 1), "the notice", 120)
    # Another source asks, and is told apart: what came twice would stand before it.
    (run.stop_word(1)).write_text("preemption\n")
    wait_until(lambda: len(heard(run, 0)) > 1 and len(heard(run, 1)) > 1, "the second notice", 120)
    leave(run)
    assert process.wait(120) in (0, 77)
    assert heard(run, 0) == heard(run, 1) == ["SIGUSR2"] * 2


def test_without_a_handler_the_stop_signal_ends_it_and_that_is_a_stop(run: RunDir, start: Start) -> None:
    program = """
    import os, time
    open(os.environ["OUTLAST_RUN_DIR"] + "/ready-0", "w").close()
    while os.environ["OUTLAST_ATTEMPT"] == "1":
        time.sleep(0.1)
    """
    process = start(program, stop_signal="USR1", walltime=Walltime(seconds=6), lead_seconds=5)
    assert process.wait(120) == 0
    *cuts, end = causes(run)  # on a busy machine the second, too, may be cut before it has begun
    assert {*cuts} == {"timeout"} and end == "done" and run.attempts()[0]["exits"] == {"signal 10": 1}


def test_a_rank_that_dies_of_the_notice_leaves_its_peer_the_time_to_save(run: RunDir, start: Start) -> None:
    program = """
    import os, signal, sys, time
    run, rank, attempt = os.environ["OUTLAST_RUN_DIR"], os.environ["RANK"], os.environ["OUTLAST_ATTEMPT"]
    def save(*args):
        while not os.path.exists(f"{run}/logs/attempt-0001/rank-0001.exit"):
            time.sleep(0.02)
        time.sleep(1.5)  # longer than a shim needs to end its ranks
        open(f"{run}/saved", "w").close()
        sys.exit(75)
    if rank == "0":
        signal.signal(signal.SIGTERM, save)
    open(f"{run}/ready-{rank}", "w").close()
    while attempt == "1":
        time.sleep(0.1)
    """
    process = start(program, gpus_per_node=2, launcher="fork")
    ready(run)
    run.stop_file.write_text("enough\n")
    assert process.wait(120) == 77
    assert causes(run) == ["stop"] and run.attempts()[0]["exits"] == {"exit 75": 1, "signal 15": 1}
    assert (run.path / "saved").exists()


# --- progress -------------------------------------------------------------------------------------------


def test_only_what_changed_in_the_attempt_is_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, work = RunDir(tmp_path / "run"), tmp_path / "work"
    run.attempt_dir(1).mkdir(parents=True)
    (work / "out" / "checkpoint-10").mkdir(parents=True)
    monkeypatch.chdir(work)

    def advanced(pattern: str | None) -> object:
        return progress.since(run, pattern, 1)["progress"]

    assert advanced("out/checkpoint-*") is False  # its supervisor was lost before it began
    progress.remember(run, "out/checkpoint-*", 1)
    assert advanced("out/checkpoint-*") is False
    (work / "out" / "other-20").mkdir()
    assert advanced("out/checkpoint-*") is False
    (work / "out" / "checkpoint-20").mkdir()
    assert advanced("out/checkpoint-*") is True
    # In place, as `last.pt` in a folder of the run; an older time is none.
    last = run.path / "ckpt" / "last.pt"
    last.parent.mkdir()
    last.write_text("1")
    progress.remember(run, "ckpt", 1)
    os.utime(last, ns=(0, last.stat().st_mtime_ns - 1))
    assert advanced("ckpt") is False
    os.utime(last, ns=(0, last.stat().st_mtime_ns + 2))
    assert advanced("ckpt") is True


def test_the_programs_own_number(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.attempt_dir(1).mkdir(parents=True)
    progress.remember(run, None, 1)
    assert progress.since(run, None, 1) == {"first_step": 0, "committed_step": 0, "progress": None}
    for text, step in (("40\n", 40), ("41.0 of 100", 41), ("", 0), ("soon", 0)):
        run.progress_file.write_text(text)
        assert progress.since(run, None, 1) == {"first_step": 0, "committed_step": step, "progress": step > 0 or None}
    run.progress_file.write_text("40")
    assert status([run])[0].step == 40
    progress.remember(run, None, 1)
    assert progress.since(run, None, 1)["progress"] is False


@pytest.mark.parametrize(
    ("told", "code"),
    [(None, 0), ([None, None, None], 0), ([False] * 3, 93), ([False, True, False], 0), ([None, False, False], 0)],
)
def test_time_limits_without_progress_count_where_it_is_known(told: list[object] | None, code: int) -> None:
    plain = {"cause": "timeout", "first_step": 0, "committed_step": 0}
    attempts = [{**plain, "progress": one} if told else plain for one in told or [None] * 3]
    assert decide(attempts, steps_known=False).code == code


@pytest.mark.parametrize(("word", "code"), [("saved", 0), ("idle", 93)])
def test_a_command_that_is_cut_again_and_again(run: RunDir, start: Start, word: str, code: int) -> None:
    """With a checkpoint an attempt it may go on; without one three time limits are enough."""
    program = f"""
    import os, time
    attempt = os.environ["OUTLAST_ATTEMPT"]
    open(os.environ["OUTLAST_RUN_DIR"] + "/{word}-" + attempt, "w").close()
    while int(attempt) < 5:
        time.sleep(0.1)
    """
    process = start(program, walltime=Walltime(seconds=2), lead_seconds=1, progress="saved-*")
    assert process.wait(120) == code
    *cuts, end = causes(run)  # on a slow machine the fifth, too, may be cut before it has begun
    assert set(cuts) == {"timeout"} and (end == "done" and len(cuts) >= 4 if code == 0 else cuts == [end] * 2)


# --- the words of a user --------------------------------------------------------------------------------


def test_the_flags() -> None:
    words = ["--stop-signal", "USR1", "--lead", "0:02:30", "--progress", "out/*"]
    _, _, job = flags.parse(words)
    assert job == {"stop_signal": "USR1", "lead_seconds": 150.0, "progress": "out/*"}
    assert flags.parse(["--lead", "90"])[2] == {"lead_seconds": 90.0}
    with pytest.raises(ConfigError, match="--lead"):
        flags.parse(["--lead", "soon"])


@pytest.mark.parametrize(
    ("given", "words"),
    [({"stop_signal": "HUP"}, "USR1"), ({"stop_signal": "INT"}, "for a command"), ({"progress": "x"}, "for a command")],
)
def test_what_a_job_refuses(given: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make_job({"name": "x", **given}, "here")
