"""Contenders that are all alive, of which one runs at a time: a few steps each, round by round, in random order.

What others do on these cores meanwhile is measured, and rounds that they disturb are repeated.
"""

from __future__ import annotations

import json
import os
import random
import select
import socket
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from benchmarks import peers
from benchmarks.processes import Unable, last_line

THREADS = min(2, len(os.sched_getaffinity(0)))
"""Of torch, in each process that has no other ranks."""
QUIET = 0.25
"""Cores that others may have in a round."""
PATIENCE = 300.0
"""Seconds without an answer after which a contender is given up: more than the slowest start beside all others'."""


@dataclass(frozen=True)
class Step:
    """One step of a contender, from gate to gate."""

    wall: float
    """Seconds of rank 0."""
    cpu: float
    """Seconds of all ranks with all their threads."""
    marks: dict[str, float]
    """Seconds from the gate on, of rank 0."""
    values: dict[str, float]
    """Whatever else rank 0 told of it."""

    @classmethod
    def of(cls, told: Sequence[dict[str, Any]]) -> Step:
        """From what each rank has told."""
        lead = told[0]
        values = {name: value for name, value in lead.items() if name not in ("wall", "cpu", "marks")}
        return cls(lead["wall"], sum(rank["cpu"] for rank in told), lead["marks"], values)

    @property
    def parts(self) -> dict[str, float]:
        """Where its seconds went; what is not the model's or AdamW's is `around` them."""
        forward, passed, adamw, stepped = (self.marks[name] for name in ("forward", "passed", "adamw", "stepped"))
        return {
            "forward": passed - forward,
            "loss, backward and clip": adamw - passed,
            "AdamW": stepped - adamw,
            "around": self.wall - (stepped - forward),
        }


@dataclass
class Racer:
    """The ranks of a contender. Leaving the context kills them."""

    name: str
    argv: list[str]
    log: Path
    world: int = 1
    threads: int = THREADS
    """Of torch, in each rank."""
    ranks: list[tuple[subprocess.Popen[str], TextIO]] = field(default_factory=list)

    def __enter__(self) -> Racer:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.ranks.extend(self._start(rank, port) for rank in range(self.world))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for process, answers in self.ranks:
            process.kill()
            process.communicate()
            answers.close()

    def _start(self, rank: int, port: int) -> tuple[subprocess.Popen[str], TextIO]:
        env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "SLURM_"))}
        env |= {"OMP_NUM_THREADS": str(self.threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        env |= {"CUDA_VISIBLE_DEVICES": ""}  # a race on the CPU, wherever it is
        if self.world > 1:
            env |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(self.world)}
            env |= {"LOCAL_WORLD_SIZE": str(self.world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        read, write = os.pipe()
        with open(self.log, "ab") as log:
            process = subprocess.Popen(
                self.argv,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=[write],
                env=env | {"GATE": str(write)},
                cwd=peers.ROOT,
                text=True,
            )
        os.close(write)
        return process, os.fdopen(read)

    def ready(self) -> None:
        """It stands before its first step. Raises Unable."""
        self._answers()

    def run(self, steps: int) -> list[Step]:
        """So many of them. Raises Unable."""
        for process, _ in self.ranks:
            assert process.stdin is not None
            process.stdin.write(f"{steps}\n")
            process.stdin.flush()
        return [Step.of(told) for told in zip(*self._answers(), strict=True)]

    def leave(self) -> None:
        """No more orders: it ends by itself. Raises Unable."""
        for process, _ in self.ranks:
            assert process.stdin is not None
            process.stdin.close()
        try:
            for process, _ in self.ranks:
                process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise Unable(f"{self.name}: did not end within {PATIENCE:.0f} s") from None

    def _answers(self) -> list[list[dict[str, Any]]]:
        return [self._answer(answers) for _, answers in self.ranks]

    def _answer(self, answers: TextIO) -> list[dict[str, Any]]:
        if not select.select([answers], [], [], PATIENCE)[0]:
            raise Unable(f"{self.name}: silent for {PATIENCE:.0f} s")
        line = answers.readline()
        if not line:
            raise Unable(f"{self.name}: {last_line(self.log.read_text(errors='replace'))[:200]}")
        told: list[dict[str, Any]] = json.loads(line)
        return told


@dataclass(frozen=True)
class Round:
    others: float
    """Cores that other processes had meanwhile."""
    steps: list[Step]
    """Those that count: the first step after a pause does not."""


@dataclass
class Ran:
    """What came of a contender."""

    steps: list[Step] = field(default_factory=list)
    """All, in order."""
    rounds: list[Round] = field(default_factory=list)
    words: str = ""
    """Why it did not go on."""

    @property
    def counted(self) -> list[Step]:
        return [step for one in self.rounds for step in one.steps]

    def quiet(self, rounds: int) -> bool:
        """It has so many rounds that nobody disturbed, or will not have more."""
        return bool(self.words) or sum(one.others <= QUIET for one in self.rounds) >= rounds


def most(warm: int, rounds: int, steps: int) -> int:
    """Steps that a contender has data for: its loader may be some ahead."""
    return warm + 2 * rounds * (steps + 1) + 3


def race(racers: Iterable[Racer], warm: int, rounds: int, steps: int) -> dict[str, Ran]:
    """`warm` steps first, then so many rounds of so many steps that count: the least disturbed of up to twice as many.
    Who fails is out, and says why."""
    ran: dict[str, Ran] = {}
    with ExitStack() as stack:
        alive = {racer.name: stack.enter_context(racer) for racer in racers}
        for name, racer in alive.items():
            ran[name] = Ran()
            _try(racer, ran[name], racer.ready)
        for name, racer in alive.items():
            _try(racer, ran[name], partial(_run, racer, ran[name], warm))
        for number in range(2 * rounds):
            if all(one.quiet(rounds) for one in ran.values()):
                break
            for name in random.Random(number).sample(list(alive), len(alive)):
                _try(alive[name], ran[name], partial(_round, alive[name], ran[name], steps))
    for one in ran.values():
        one.rounds = sorted(one.rounds, key=lambda each: each.others)[:rounds]
    return ran


def _try(racer: Racer, ran: Ran, part: Callable[[], object]) -> None:
    if ran.words:
        return
    try:
        part()
    except Unable as error:
        ran.words = str(error)
    except OSError as error:  # it has left, and its pipe is broken
        ran.words = f"{racer.name}: {error}"


def _run(racer: Racer, ran: Ran, steps: int) -> list[Step]:
    found = racer.run(steps)
    ran.steps += found
    return found


def _round(racer: Racer, ran: Ran, steps: int) -> None:
    began, before = time.perf_counter(), busy()
    found = _run(racer, ran, steps + 1)
    own = sum(step.cpu for step in found)
    others = max(0.0, busy() - before - own) / (time.perf_counter() - began)
    ran.rounds.append(Round(others, found[1:]))


def busy() -> float:
    """Seconds since the start that this machine's cores have worked, or a hypervisor has had them."""
    user, nice, system, _, _, irq, soft, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")


def p20(values: Iterable[float]) -> float:
    """The 20th percentile: what a step takes where no neighbour is in its way."""
    return statistics.quantiles(values, n=5, method="inclusive")[0]
