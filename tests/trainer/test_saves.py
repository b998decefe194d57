"""Saves beside the training: what they hold, what becomes of one that fails, and what happens without room for them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.trainer.ranks import Run, Zygote, write_run
from tests.waiting import wait_until
from trainer.host import memory_left
from trainer.records.board import Board

NewRun = Callable[..., Run]
SHAPE = {"train": {"steps": 24}, "checkpoint": {"every": 10}}


@pytest.fixture(scope="module")
def sha256(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of the run that nobody interrupts."""
    whole = write_run(tmp_path_factory.mktemp("whole") / "run", zygote, **SHAPE)
    assert whole.go(2) == [0, 0], whole.log()
    return str(whole.done()["sha256"])


def saved(run: Run) -> list[int]:
    return [event["step"] for event in run.events("save")]


def test_steps_go_on_beside_a_save_and_it_holds_the_step_at_which_it_began(new_run: NewRun, sha256: str) -> None:
    run = new_run("run", **SHAPE)
    run.start_with_fault(2, "save", 1, "wait")
    run.reaches_fault()
    run.reaches(18)
    assert not saved(run) and not run.checkpoints()
    run.go_on()
    wait_until(lambda: saved(run), run.log())
    run.kill()
    assert saved(run)[0] == 10 and run.events("save")[0]["stall"] < run.events("save")[0]["seconds"]
    assert run.go(2) == [0, 0], run.log()
    assert run.events("resume")[-1]["step"] >= 10
    assert run.done()["sha256"] == sha256


def test_the_next_save_waits_for_the_one_under_way(new_run: NewRun, sha256: str) -> None:
    run = new_run("run", **SHAPE)
    run.start_with_fault(2, "save", 0, "wait")
    run.reaches(19)  # the twentieth is told when its successor runs
    run.go_on()
    assert run.wait() == [0, 0], run.log()
    assert saved(run) == [10, 20, 24] and run.done()["sha256"] == sha256


def test_an_error_of_the_disk_costs_one_save(new_run: NewRun, sha256: str) -> None:
    run = new_run("run", **SHAPE)
    run.start_with_fault(2, "save", 1, "eio")
    assert run.wait() == [0, 0], run.log()
    (failed,) = run.events("save_failed")
    assert failed["step"] == 10 and failed["error"] == "rank 1: [Errno 5] Input/output error"
    assert saved(run) == [20, 24] and run.done()["sha256"] == sha256
    assert not list((run.path / "checkpoints").glob(".tmp-*"))


def test_a_full_disk_costs_one_save(new_run: NewRun, sha256: str, disk: Callable[[int], Path]) -> None:
    """The log, too, takes no line then."""
    run = new_run(str(disk(100 << 20) / "run"), **SHAPE)
    assert run.go(2, ["tests.trainer.with_a_full_disk", str(run.path / "config.yaml")]) == [0, 0], run.log()
    (failed,) = run.events("save_failed")
    assert failed["step"] == 10 and "No space left on device" in failed["error"]
    assert saved(run) == [20, 24] and run.done()["sha256"] == sha256


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # of TensorBoard's own thread
def test_tensorboard_on_a_full_disk_ends_with_its_last_value(disk: Callable[[int], Path]) -> None:
    with Board(disk(1 << 16), 1, active=True) as board:
        for step in range(1, 5000):
            board.add(step, loss=1.0)
    assert step == 4999


def test_two_lost_saves_in_a_row_end_the_attempt(new_run: NewRun) -> None:
    run = new_run("run", train={"steps": 2000}, checkpoint={"every": 5})
    assert run.go(2, ["tests.trainer.with_small_files", str(run.path / "config.yaml")]) == [1, 1]
    assert [event["step"] for event in run.events("save_failed")] == [5, 10]
    assert "2 checkpoints in a row could not be saved" in run.log()


def test_a_writer_that_dies_of_a_bug_ends_every_rank(new_run: NewRun) -> None:
    run = new_run("run", train={"steps": 2000}, checkpoint={"every": 5})
    run.start_with_fault(3, "save", 1, "bug")
    assert run.wait() == [1, 1, 1], run.log()
    assert "ZeroDivisionError: a bug" in run.log(1) and "a rank has left without a word" in run.log(0)
    assert run.checkpoints() == []


def test_a_node_without_room_for_a_copy_writes_while_the_training_waits(new_run: NewRun, sha256: str) -> None:
    run = new_run("run", **SHAPE)
    little = ["tests.trainer.with_little_memory", str(run.path / "config.yaml")]
    run.start(2, little)
    run.reaches(12)
    run.signal(signal.SIGTERM, rank=0)
    assert run.wait() == [75, 75], run.log()
    assert "the training waits while a checkpoint is written" in run.log()
    first = run.events("save")[0]
    assert first["step"] == 10 and first["stall"] >= first["seconds"]
    assert run.go(2) == [0, 0], run.log()
    assert run.done()["sha256"] == sha256


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("bit", "rank 1 on {host} does not hold the weights that it has read"),
        ("replica", "rank 1 on {host} holds other weights than a rank that should hold the same"),
        ("nan", "rank 1 on {host} computes a loss of nan from them"),
    ],
)
def test_a_rank_that_does_not_hold_what_was_saved_does_not_train(
    new_run: NewRun, sha256: str, fault: str, said: str
) -> None:
    run = new_run("run", **SHAPE)
    run.stop_after(2, 5)
    before = run.checkpoints()
    assert run.go(2, ["tests.trainer.with_a_broken_memory", fault, str(run.path / "config.yaml")]) == [1, 1]
    assert said.format(host=os.uname().nodename) in run.log() and run.checkpoints() == before
    assert run.go(2) == [0, 0], run.log()
    assert run.done()["sha256"] == sha256


GB = 1 << 30


def write_host(root: Path, groups: str, files: dict[str, object]) -> None:
    texts = {
        "proc/meminfo": f"MemTotal: 9 kB\nMemAvailable:  {8 * GB // 1024} kB\n",
        "proc/self/cgroup": groups,
        **files,
    }
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(str(text))


def test_what_the_node_and_each_control_group_leave(tmp_path: Path) -> None:
    write_host(tmp_path / "bare", "0::/\n", {})
    assert memory_left(tmp_path / "bare") == 8 * GB

    job = "sys/fs/cgroup/slurm/job_7"
    second = {
        f"{job}/memory.max": 4 * GB,
        f"{job}/memory.current": 3 * GB,
        f"{job}/memory.stat": f"anon 5\ninactive_file {GB}\nactive_file {GB // 2}",
        f"{job}/step_0/memory.max": "max",
    }
    write_host(tmp_path / "v2", "0::/slurm/job_7/step_0\n", second)
    assert memory_left(tmp_path / "v2") == 4 * GB - 3 * GB + GB + GB // 2

    group = "sys/fs/cgroup/memory/slurm"
    first = {
        f"{group}/memory.limit_in_bytes": 2 * GB,
        f"{group}/memory.usage_in_bytes": GB,
        f"{group}/memory.stat": f"inactive_file 1\ntotal_inactive_file {GB // 4}",
    }
    write_host(tmp_path / "v1", "5:cpu:/slurm\n4:memory:/slurm/job_7\n", first)
    assert memory_left(tmp_path / "v1") == GB + GB // 4
