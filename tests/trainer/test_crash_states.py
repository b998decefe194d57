"""The host dies in the middle of a save: whatever the disk may hold then, the old checkpoint is there or the new one."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from tests.trainer import crash_states
from tests.trainer.crash_states import SAVED, Folder, Operation
from tests.trainer.strace import Strace, needs_strace
from tests.trainer.told import Attempt, Origin
from trainer.checkpoint.verify import problems

pytestmark = needs_strace
Origins = Callable[[int], Origin]


def recorded(attempt: Attempt, *verbs: str) -> tuple[Folder, list[Operation]]:
    """The run's folder before the ranks did these, and what they did to it."""
    run_dir = attempt.run_dir
    before = Folder(
        {name: crash_states.scan(run_dir / name) for name in ("claims", "checkpoints") if (run_dir / name).exists()}
    )
    traces = [Strace(pid, run_dir / f"strace-{pid}", *crash_states.OPTIONS) for pid in attempt.pids]
    for verb in verbs:
        attempt.all(verb)
    return before, crash_states.operations([strace.end() for strace in traces], run_dir)


def check(origin: Origin, before: Folder, done: Iterable[Operation], allowed: tuple[int, int], folder: Path) -> int:
    """In each state the old step is found or the new one, and the new one from where the save was said to have
    succeeded. What bears a checkpoint's name is whole. Returns the number of states."""
    count = 0
    with Attempt(origin.zygote, folder / "reader", origin.world) as reader:
        for saved, state in crash_states.states(before, done):
            count += 1
            run_dir = folder / "state"
            run_dir.mkdir()
            crash_states.write(state, run_dir)
            named = (run_dir / "checkpoints").glob("step-*")
            assert [problem for path in named for problem in problems(path)] == []
            origin.loads(reader, set(allowed[saved:]), str(run_dir))
            shutil.rmtree(run_dir)
    return count


@pytest.mark.parametrize("world", [1, 2])
def test_a_crash_leaves_the_old_checkpoint_or_the_new_one(origins: Origins, world: int, tmp_path: Path) -> None:
    origin = origins(world)
    with origin.attempt(tmp_path / "run") as attempt:
        before, done = recorded(attempt, "save", "clean_up")
    assert SAVED in done and sum(operation.name == "fsync" for operation in done) >= world + 3
    assert check(origin, before, done, (1, 2), tmp_path) > len(done)


def test_a_crash_in_the_first_save(origins: Origins, tmp_path: Path) -> None:
    """The folder of all checkpoints is new, too."""
    origin = origins(1)
    with Attempt(origin.zygote, tmp_path / "run") as attempt:
        attempt.all("load"), attempt.all("train")
        before, done = recorded(attempt, "save")
    check(origin, before, done, (0, 1), tmp_path)


def test_each_sync_is_needed(origins: Origins, tmp_path: Path) -> None:
    """Without any one of them there is a crash after which it is neither the old checkpoint nor the new one."""
    origin = origins(1)
    with Attempt(origin.zygote, tmp_path / "run") as attempt:
        attempt.all("load"), attempt.all("train")
        _, done = recorded(attempt, "save")
    syncs = [operation for operation in done if operation.name == "fsync"]
    # The run's folder, the rank's file, the manifest, the checkpoint's folder, the folder of all checkpoints.
    assert len(syncs) == 5
    for number, sync in enumerate(syncs):
        folder = tmp_path / f"without-{number}"
        folder.mkdir()
        others = [operation for operation in done if operation is not sync]
        with pytest.raises(AssertionError):
            check(origin, Folder(), others, (0, 1), folder)


def test_what_is_old_loses_its_name_before_its_files(origins: Origins, tmp_path: Path) -> None:
    """Without a sync between the two a crash leaves a checkpoint's name without its files."""
    origin = origins(1)
    with origin.attempt(tmp_path / "run") as attempt:
        before, done = recorded(attempt, "save", "clean_up")
    saved = done.index(SAVED)
    unsynced = [operation for operation in done[saved:] if operation.name != "fsync"]
    assert [operation.name for operation in unsynced] == ["saved", "rename", "unlink", "unlink", "unlink"]
    with pytest.raises(AssertionError, match="is missing"):
        check(origin, before, [*done[:saved], *unsynced], (1, 2), tmp_path)
