"""Contenders that are all alive, of which one runs at a time: a few steps each, round by round, in random order."""

from __future__ import annotations

import json
import os
import random
import select
import socket
import statistics
import subprocess
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from benchmarks import peers
from benchmarks.processes import Unable, last_line

THREADS = min(2, len(os.sched_getaffinity(0)))
"""Of torch, in each process that has no other ranks."""
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


@dataclass
class Ran:
    """What came of a contender."""

    steps: list[Step] = field(default_factory=list)
    """All, in order."""
    rounds: list[list[Step]] = field(default_factory=list)
    """Those that count: the first step after a pause does not."""
    words: str = ""
    """Why it did not go on."""

    @property
    def counted(self) -> list[Step]:
        return [step for steps in self.rounds for step in steps]


def race(racers: Iterable[Racer], warm: int, rounds: int, steps: int) -> dict[str, Ran]:
    """`warm` steps first, then so many rounds of so many steps that count. Who fails is out, and says why."""
    ran: dict[str, Ran] = {}
    with ExitStack() as stack:
        alive = {racer.name: stack.enter_context(racer) for racer in racers}
        for name, racer in alive.items():
            ran[name] = Ran()
            _or_words(racer, ran[name], 0)
        for number in range(-1, rounds):
            order = random.Random(number).sample(list(alive), len(alive))
            for name in order:
                if not ran[name].words:
                    found = _or_words(alive[name], ran[name], warm if number < 0 else steps + 1)
                    ran[name].steps += found
                    if number >= 0 and found:
                        ran[name].rounds.append(found[1:])
    return ran


def _or_words(racer: Racer, ran: Ran, steps: int) -> list[Step]:
    """Its steps, or why there are none. 0 steps: until it is ready."""
    try:
        if steps:
            return racer.run(steps)
        racer.ready()
    except (Unable, OSError) as error:  # a pipe that breaks is a contender that left
        ran.words = str(error)
    return []


def p20(values: Iterable[float]) -> float:
    """The 20th percentile: what a step takes where no neighbour is in its way."""
    return statistics.quantiles(values, n=5, method="inclusive")[0]
