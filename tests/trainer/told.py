"""Attempts whose ranks (tests.trainer.saving) do what a test tells them, and the run that all faults begin with."""

from __future__ import annotations

import json
import shutil
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from durable import nonce
from tests.trainer.ranks import Zygote

Answer = dict[str, Any]


class Attempt:
    """The ranks of one attempt. One that is gone answers None."""

    def __init__(self, zygote: Zygote, run_dir: Path, world: int = 1) -> None:
        self.run_dir, self.world = run_dir, world
        run_dir.mkdir(exist_ok=True)
        memory = run_dir.with_name(f"{run_dir.name}-memory")  # of this node
        variables = {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "OUTLAST_NODE_MEMORY": str(memory)}
        if world > 1:
            port = zygote.port(Path("told"))  # the last attempt is gone
            variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        address = f"outlast-{nonce()}"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"\0{address}")
            listener.listen(world)
            listener.settimeout(60)
            self.pids = []
            for rank in range(world):
                own = {**variables, "RANK": str(rank), "LOCAL_RANK": str(rank)}
                argv = ["tests.trainer.saving_rank", str(run_dir), address]
                self.pids.append(zygote.fork(argv, own, self._log(rank)))
            lines = [_line(listener.accept()[0]) for _ in range(world)]
        self._lines = dict(sorted((json.loads(line.readline())["rank"], line) for line in lines))

    def __enter__(self) -> Attempt:
        return self

    def __exit__(self, *_: object) -> None:
        """The ranks leave where they have heard the last word."""
        for line in self._lines.values():
            with suppress(OSError):
                line.close()

    def tell(self, rank: int, *words: Any) -> None:
        with suppress(OSError):
            self._lines[rank].write(json.dumps(words) + "\n")
            self._lines[rank].flush()

    def hear(self, rank: int) -> Answer | None:
        try:
            line = self._lines[rank].readline()
        except ConnectionResetError:
            line = ""
        return json.loads(line) if line else None

    def all(self, *words: Any) -> list[Answer]:
        """Told to every rank, and done by all."""
        for rank in range(self.world):
            self.tell(rank, *words)
        answers = [self.hear(rank) for rank in range(self.world)]
        assert None not in answers, self.logs()
        return answers  # type: ignore[return-value]

    def logs(self) -> str:
        return "\n".join(self._log(rank).read_text() for rank in range(self.world))

    def _log(self, rank: int) -> Path:
        return self.run_dir / f"rank-{rank}.log"


def _line(connection: socket.socket) -> Any:
    connection.settimeout(60)
    with connection:
        return connection.makefile("rw")


@dataclass(frozen=True)
class Origin:
    """A run with one checkpoint, of step 1."""

    zygote: Zygote
    path: Path
    world: int
    digests: list[str]
    """The state after each step, undisturbed."""

    def attempt(self, folder: Path) -> Attempt:
        """One that goes on from a copy of this run, and has done the second step."""
        shutil.copytree(self.path, folder)
        attempt = Attempt(self.zygote, folder, self.world)
        self.loads(attempt, {1})
        for answer in attempt.all("train"):
            assert answer == {"step": 2, "digest": self.digests[2]}
        return attempt

    def loads(self, attempt: Attempt, allowed: set[int], *run_dir: str) -> int:
        """The attempt finds one of these steps, to the bit, and passes nothing over. Returns the step."""
        first, *others = attempt.all("load", *run_dir)
        assert all(other == first for other in others)
        step = first.get("step")
        assert step in allowed and first["passed_over"] == [] and first["digest"] == self.digests[step], first
        return int(step)


def origin(zygote: Zygote, path: Path, world: int) -> Origin:
    with Attempt(zygote, path, world) as attempt:
        answers = attempt.all("load")[:1]
        for step in range(1, 6):
            answers.append(attempt.all("train")[0])
            if step == 1:
                assert attempt.all("save")[0] == {"saved": 1}
    assert [answer["step"] for answer in answers] == [0, 1, 2, 3, 4, 5]
    return Origin(zygote, path, world, [answer["digest"] for answer in answers])
