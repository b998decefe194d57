"""A kill at every system call of a save, and an error of the file system at every one that looks at the run's folder or
writes there: the old checkpoint is there or the new one, whole; the training goes on, and the next save succeeds."""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.trainer.strace import Call, Strace, calls, needs_strace
from tests.trainer.told import Answer, Attempt, Origin
from trainer.checkpoint.verify import problems

FAULTS = int(os.environ.get("OUTLAST_FAULTS", "16"))  # of each test; a nightly run takes all
ERRORS = ("ENOSPC", "EDQUOT", "EIO", "ESTALE")

pytestmark = needs_strace
Origins = Callable[[int], Origin]


class Fault(NamedTuple):
    rank: int
    thread: int
    """In the order in which they begin; 0: the main one."""
    call: Call
    what: str
    lasts: bool = False
    """Every further call of that name fails too, until the save has failed."""

    def options(self, what: str) -> tuple[str, ...]:
        call = self.call
        return ("-e", f"trace={call.name}", "-e", f"inject={call.name}:{what}:when={call.number}{'+' * self.lasts}")

    def __str__(self) -> str:
        lasts = " and further" * self.lasts
        return f"{self.what} at {self.call.name} {self.call.number}{lasts}, thread {self.thread} of rank {self.rank}"


@dataclass
class Save:
    """A save and the clean-up after it, one thread of it under strace."""

    attempt: Attempt
    rank: int
    thread: int
    options: tuple[str, ...]
    log: Path = field(init=False)
    strace: Strace | None = None
    gone: bool = False
    """The rank under strace is."""

    def __post_init__(self) -> None:
        self.log = self.attempt.run_dir / "strace"
        if self.thread == 0:
            self.strace = Strace(self.attempt.pids[self.rank], self.log, *self.options)
        else:
            self.attempt.tell(self.rank, "hold", self.thread)
            self.attempt.hear(self.rank)

    def run(self) -> list[Answer | None]:
        """What each rank says to the save. What is old goes only after one that succeeded, as in the loop."""
        said = self._all("save")
        if all(answer and "saved" in answer for answer in said):
            said += self._all("clean_up")
        return said

    def end(self) -> list[str]:
        return self.strace.end(self.gone) if self.strace else []

    def _all(self, verb: str) -> list[Answer | None]:
        for rank in range(self.attempt.world):
            self.attempt.tell(rank, verb)
        others = [rank for rank in range(self.attempt.world) if rank != self.rank]
        return [self._hear(rank) for rank in (self.rank, *others)]  # the others wait for it

    def _hear(self, rank: int) -> Answer | None:
        answer = self.attempt.hear(rank)
        if answer and "thread" in answer:
            self.strace = Strace(answer["thread"], self.log, *self.options)
            self.attempt.tell(rank, "go on")
            answer = self.attempt.hear(rank)
        self.gone |= rank == self.rank and answer is None
        return answer


def recorded(origin: Origin, folder: Path) -> list[tuple[int, int, Call]]:
    """Every call of every thread of a save that nobody disturbs: rank, thread, call."""
    found = []
    for rank in range(origin.world):
        thread, lines = 0, ["of the main one"]
        while lines:
            run_dir = folder / f"recorded-{rank}-{thread}"
            with origin.attempt(run_dir) as attempt:
                save = Save(attempt, rank, thread, ())
                assert save.run()[0] == {"saved": 2}
                lines = save.end()
            found += [(rank, thread, call) for call in calls(lines, run_dir)]
            thread += 1
    return found


def kill(origin: Origin, folder: Path, fault: Fault) -> bool:
    """Returns whether the fault came: another run may wait a few times more for a lock, or less."""
    with origin.attempt(folder) as attempt:
        save = Save(attempt, fault.rank, fault.thread, fault.options("signal=SIGKILL"))
        said = save.run()
        hit = any("killed by SIGKILL" in line for line in save.end())
        if hit:  # a thread may end, and be killed, after its rank has given the last answer
            said.append(attempt.hear(fault.rank))
        assert (None in said) == hit, attempt.logs()
    with Attempt(origin.zygote, folder, origin.world) as attempt:  # the next one
        origin.loads(attempt, {2} if {"saved": 2} in said else {1, 2})
        trains_and_saves(origin, attempt)
    return hit


def fail(origin: Origin, folder: Path, fault: Fault) -> bool:
    """Returns whether the fault came."""
    with origin.attempt(folder) as attempt:
        save = Save(attempt, fault.rank, fault.thread, fault.options(f"error={fault.what}"))
        said = save.run()
        hit = any("(INJECTED)" in line for line in save.end())
        assert None not in said, attempt.logs()
        first = said[0]
        assert first is not None and said[: origin.world] == [first] * origin.world
        origin.loads(attempt, {2} if "saved" in first else {1}, str(folder))
        if "failed" in first:
            assert os.strerror(getattr(errno, fault.what)) in first["failed"]
            if not fault.lasts:
                assert [path.name[:13] for path in (folder / "checkpoints").iterdir()] == ["step-00000001"]
            attempt.all("train")
            assert attempt.all("save") == [{"saved": 2}] * origin.world  # as a stop does, at the same step
        trains_and_saves(origin, attempt)
    return hit


def trains_and_saves(origin: Origin, attempt: Attempt) -> None:
    """Nothing half and nothing old is left then, and what was saved is what was trained."""
    step = attempt.all("train")[0]["step"]
    assert attempt.all("save") == [{"saved": step}] * origin.world
    attempt.all("clean_up")
    (folder,) = (attempt.run_dir / "checkpoints").iterdir()
    assert folder.name.startswith(f"step-{step:08d}-") and list(problems(folder)) == []
    origin.loads(attempt, {step}, str(attempt.run_dir))


def each(faults: list[Fault], come: Callable[[Path, Fault], bool], folder: Path) -> None:
    """All of them, or a sample in which no call is more often than it must be."""
    seen = Counter[str]()

    def turn(fault: Fault) -> int:
        seen[fault.call.name] += 1
        return seen[fault.call.name]

    chosen = sorted(random.Random(1).sample(faults, len(faults)), key=turn)[:FAULTS]
    came = 0
    for number, fault in enumerate(chosen):
        try:
            hit = come(folder / str(number), fault)
            assert hit or not fault.call.inside  # another run waits for a lock once less
        except AssertionError as error:
            raise AssertionError(f"{fault}: {error}") from error
        came += hit
        shutil.rmtree(folder / str(number))
        shutil.rmtree(folder / f"{number}-memory")
    print(f"{came} of {len(chosen)} faults came; there are {len(faults)}")


@pytest.mark.parametrize("world", [1, 2])
def test_a_kill_at_every_system_call(origins: Origins, world: int, tmp_path: Path) -> None:
    origin = origins(world)
    faults = [Fault(*at, "SIGKILL") for at in recorded(origin, tmp_path)]
    each(faults, partial(kill, origin), tmp_path)


@pytest.mark.parametrize("world", [1, 2])
def test_an_error_at_every_system_call_in_the_runs_folder(origins: Origins, world: int, tmp_path: Path) -> None:
    origin = origins(world)
    each(errors(recorded(origin, tmp_path)), partial(fail, origin), tmp_path)


def errors(at: list[tuple[int, int, Call]]) -> list[Fault]:
    """Once, and from then on."""
    return [
        Fault(*where, error, lasts)
        for where in at
        if where[2].inside
        for error in (ERRORS if where[2].mutates else ("EIO", "ESTALE"))
        for lasts in (False, True)
    ]


@pytest.mark.parametrize("cut", [False, True])
def test_a_fault_in_a_resume_loses_no_checkpoint(origins: Origins, cut: bool, tmp_path: Path) -> None:
    """It ends the attempt, or is none; the next one finds what was there, and never begins at step 0. `cut`: what is
    resumed is a save that was killed when all of it lay in the node's memory."""
    origin = origins(1)
    source = tmp_path / "source"
    if cut:
        with origin.attempt(source) as attempt:
            save = Save(attempt, 0, 1, Fault(0, 1, Call("fsync", 1, True), "SIGKILL").options("signal=SIGKILL"))
            assert save.run() == [None]
            save.end()
    else:
        shutil.copytree(origin.path, source)

    def loaded(folder: Path, *options: str) -> tuple[int | None, str]:
        """The step, and what strace saw. No step: the attempt has ended."""
        for suffix in ("", "-memory") if cut else ("",):
            shutil.copytree(f"{source}{suffix}", f"{folder}{suffix}")
        with Attempt(origin.zygote, folder) as attempt:
            attempt.all("ready")
            strace = Strace(attempt.pids[0], folder / "strace", *options)
            attempt.tell(0, "load")
            answer = attempt.hear(0)
            seen = "\n".join(strace.end(gone=answer is None))
        if answer is not None:
            step = answer.get("step")
            assert step in (1, 1 + cut) and answer["digest"] == origin.digests[step], answer
        return answer and step, seen

    def come(folder: Path, fault: Fault) -> bool:
        what = "signal=SIGKILL" if fault.what == "SIGKILL" else f"error={fault.what}"
        step, seen = loaded(folder, *fault.options(what))
        with Attempt(origin.zygote, folder) as attempt:
            origin.loads(attempt, {step} if step else {1, 1 + cut})
        return "(INJECTED)" in seen or "killed by SIGKILL" in seen

    step, seen = loaded(tmp_path / "recorded")
    assert step == 1 + cut
    at = [(0, 0, call) for call in calls(seen.splitlines(), tmp_path / "recorded")]
    once = [fault for fault in errors(at) if not fault.lasts]
    each([*once, *(Fault(*where, "SIGKILL") for where in at)], come, tmp_path)


# --- a full file system ---------------------------------------------------------------------------------


def test_a_disk_that_holds_one_and_a_half_checkpoints(origins: Origins, disk: Callable[[int], Path]) -> None:
    origin = origins(1)
    size = sum(path.stat().st_size for path in (origin.path / "checkpoints").rglob("*"))
    small = disk(size * 3 // 2)
    with origin.attempt(small / "run") as attempt:
        for _ in range(2):  # it stays full, and the training goes on
            (answer,) = attempt.all("save")
            assert "No space left on device" in answer["failed"]
            (old,) = (attempt.run_dir / "checkpoints").iterdir()
            assert old.name == "step-00000001-e0001" and list(problems(old)) == []
            attempt.all("train")
        subprocess.run(["mount", "-o", "remount,size=100M", small], check=True)
        trains_and_saves(origin, attempt)
