"""Runs of Outlast and of its peers, each started as its documentation has it, and preempted after the same steps."""

from __future__ import annotations

import json
import random
import shutil
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import peers
from benchmarks.goodput.account import Attempt, Run
from benchmarks.goodput.peers.common import process_start
from benchmarks.goodput.place import EVERY, LR, MICRO_BATCH, RANKS, SHAPE, Stage, outlast_recipe, spans
from benchmarks.processes import last_line
from durable import write_atomic
from envs.drill.ranks import ranks
from envs.pocket import Pocket
from settings import dump_yaml
from slurm.rundir import RunDir

ROOT = Path(__file__).parent.parent.parent
SCRIPTS = Path(__file__).parent / "peers"
MINUTES = 120
"""Time limit of a job: none meets it."""
PATIENCE = 180.0
"""Seconds without a new step after which a run is given up."""


@dataclass
class Tail:
    """The lines of a growing file, each read once."""

    path: Path
    offset: int = 0

    def new(self) -> Iterator[dict[str, Any]]:
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self.offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return  # it is being written
                self.offset += len(line)
                yield json.loads(line)


@dataclass
class Watched(ABC):
    """A run of one contender: how it is started, and what it tells."""

    stage: Stage
    folder: Path
    steps: int
    run: Run = field(default_factory=Run)

    @abstractmethod
    def submit(self) -> None: ...

    @abstractmethod
    def look(self) -> None:
        """Bring `run` up to date."""

    @property
    def step(self) -> int:
        """The newest step of the newest attempt; 0 before its first one."""
        told = self.run.attempts[-1].told if self.run.attempts else []
        return told[-1][0] if told else 0


class Outlast(Watched):
    """`launch.py`, a successor waiting in the queue."""

    @property
    def rundir(self) -> RunDir:
        return RunDir(self.folder / "runs" / "outlast")

    def submit(self) -> None:
        self.tail, self.epochs = Tail(self.rundir.events), dict[int, Attempt]()
        recipe = self.folder / "recipe.yaml"
        write_atomic(recipe, dump_yaml(outlast_recipe(self.stage.data, self.stage.work / "prepared", self.steps)))
        words = ["--nodes", "1", "--gpus", str(RANKS), "-p", "preempt", "-t", f"{MINUTES // 60:02}:00:00"]
        words += ["--continue-by", "chain", "--name", "outlast", "--runs-dir", str(self.folder / "runs"), str(recipe)]
        self.stage.call(sys.executable, str(ROOT / "launch.py"), *words, cwd=self.folder)

    def look(self) -> None:
        epoch = self.rundir.newest_epoch()
        if epoch and epoch not in self.epochs and (began := self.ranks_began(epoch)):
            self.attempt(epoch, began)
        for event in self.tail.new():
            attempt = self.attempt(event["epoch"], event["time"])
            if event["event"] == "resume":
                attempt.ready = event["time"]
            elif event["event"] == "step":
                attempt.told.append((event["step"], event["time"]))
        self.run.done = self.rundir.done

    def attempt(self, epoch: int, began: float) -> Attempt:
        if epoch not in self.epochs:
            self.epochs[epoch] = Attempt(began)
            self.run.attempts.append(self.epochs[epoch])
        return self.epochs[epoch]

    def ranks_began(self, epoch: int) -> float | None:
        """Unix seconds; the ranks of the attempt before are gone when this one is claimed."""
        claim = self.rundir.read_claim(epoch)
        try:
            began = [process_start(pid) for pid in ranks(self.rundir)]
        except OSError:  # one has just ended
            return None
        return min((one for one in began if claim and one > claim.time - 1), default=None)


class Peer(Watched):
    """A script in the peers' environment that tells its log what it does."""

    signal: str | None = None
    """Of `#SBATCH --signal`, as the peer's documentation has it."""
    script = ""
    after = ""
    """What the job's script does when the ranks have left."""

    def submit(self) -> None:
        self.tail = Tail(self.folder / "log.jsonl")
        self.settings()
        file = self.folder / "job.sh"
        file.write_text(self.job())
        self.stage.call("sbatch", str(file), cwd=self.folder)

    def settings(self) -> None:
        options = {"model": SHAPE, "steps": self.steps, "tokens": str(self.stage.tokens), "every": EVERY, "lr": LR}
        options |= {"ranks": RANKS, "micro_batch_size": MICRO_BATCH, "minutes": MINUTES}
        (self.folder / "settings.json").write_text(json.dumps(options))

    def job(self) -> str:
        return f"""#!/bin/bash
#SBATCH --job-name={self.folder.name} --partition=preempt --time={MINUTES} --requeue
#SBATCH --nodes=1 --ntasks-per-node={RANKS} --open-mode=append --output={self.folder}/job.log
#SBATCH --signal={self.signal}
srun {peers.BIN}/python {SCRIPTS}/{self.script} {self.folder}
{self.after}
"""

    def look(self) -> None:
        for event in self.tail.new():
            match event["event"]:
                case "start":
                    self.run.attempts.append(Attempt(event["time"]))
                case "ready":
                    self.run.attempts[-1].ready = event["time"]
                case "step":
                    self.run.attempts[-1].told.append((event["step"], event["time"]))
                case "done":
                    self.run.done = True


class HfTrainer(Peer):
    signal, script = "SIGTERM@90", "hf_trainer.py"

    @property
    def after(self) -> str:  # type: ignore[override]
        return f"[ -e {self.folder}/finished ] || scontrol requeue $SLURM_JOB_ID"


class Lightning(Peer):
    signal, script = "SIGUSR1@90", "lightning_fit.py"


class Submitit(Peer):
    def submit(self) -> None:
        self.tail = Tail(self.folder / "log.jsonl")
        self.settings()
        self.stage.call(str(peers.BIN / "python"), str(SCRIPTS / "submitit_run.py"), str(self.folder), cwd=SCRIPTS)


CONTENDERS: dict[str, type[Watched]] = {
    "outlast": Outlast,
    "transformers": HfTrainer,
    "lightning": Lightning,
    "submitit": Submitit,
}
"""By the package whose version a result holds for."""


def preempted_after(count: int, steps: int, seed: int) -> list[int]:
    """Seeded steps, one in the middle of each part of the run, so that every attempt has steps to do."""
    dice = random.Random(f"{seed} {count} {steps}")
    return [round(steps * (part + dice.uniform(0.2, 0.8)) / count) for part in range(count)]


def perform(stage: Stage, kind: type[Watched], name: str, steps: int, after: list[int]) -> Run:
    """One run from its submission to its end, preempted once after each of these steps."""
    folder = stage.work / "runs" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    began = time.time()
    watched = kind(stage, folder, steps)
    watched.submit()
    urgent = []
    for step in after:
        attempts = len(watched.run.attempts)
        if not _wait(watched, lambda: watched.step >= step and len(watched.run.attempts) > attempts):  # noqa: B023
            break
        watched.run.asked.append(time.time())
        words = ["--parsable", "--partition=urgent", "--exclusive", "--output=/dev/null", "--wrap=sleep 1"]
        urgent.append(stage.pocket.ask("sbatch", *words).strip())
    _wait(watched, lambda: watched.run.done)
    if not watched.run.done:
        silence = f"{PATIENCE:.0f} s without a step after step {watched.step}: {last_words(folder)}"
        watched.run.words = watched.run.words or silence
    _clear(stage.pocket, patience=15 if watched.run.done else 0)
    for job, found in spans(stage.work, began).items():
        (watched.run.urgent if job in urgent else watched.run.held).extend(found)
    watched.run.held.sort()
    if watched.run.done:  # half a gigabyte of checkpoints; of a run that failed all is kept
        shutil.rmtree(folder, ignore_errors=True)
    return watched.run


def _wait(watched: Watched, condition: Callable[[], bool]) -> bool:
    """False: it ended, or nothing new came for so long."""
    seen, since, asked = -1, time.monotonic(), time.monotonic()
    while True:
        watched.look()
        if condition():
            return True
        if watched.run.done:
            return False
        told = sum(len(one.told) for one in watched.run.attempts)
        if told != seen:
            seen, since = told, time.monotonic()
        if time.monotonic() - since > PATIENCE:
            return False
        if time.monotonic() - asked > 5:  # seldom: each question costs the ranks a little
            asked = time.monotonic()
            if not watched.stage.pocket.jobs():
                watched.look()
                end = f"its job left the queue at step {watched.step} of {watched.steps}"
                watched.run.words = f"{end}: {last_words(watched.folder)}"
                return condition()
        time.sleep(0.05)


def last_words(folder: Path) -> str:
    """The last line of the log that was written last."""
    logs = [path for pattern in ("**/*.log", "**/*.err") for path in folder.glob(pattern) if path.stat().st_size]
    newest = max(logs, key=lambda path: path.stat().st_mtime, default=None)
    return last_line(newest.read_text(errors="replace"))[:200] if newest else "it wrote nothing"


def _clear(pocket: Pocket, patience: float) -> None:
    """No job of the run is left: a run that is done may take so many seconds to leave."""
    end = time.monotonic() + patience
    while (jobs := pocket.jobs()) and time.monotonic() < end + 60:
        if time.monotonic() > end:
            pocket.ask("scancel", *jobs)
        time.sleep(0.1)
