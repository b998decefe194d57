"""Faults as data: what is injected and when, and what must come of it."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import cast

from envs.drill.place import Breakable, Place, Site
from envs.drill.ranks import ranks, step_daemons, strike
from envs.drill.watch import wait_until
from slurm import nodelist
from slurm.rundir import RunDir

STEP, SAVE, EVALUATION = "a step", "a save", "an evaluation"


@dataclass
class Scene:
    """One attempt of a run, and the hands that hurt it."""

    place: Place
    run: RunDir
    epoch: int
    """The attempt that is hurt."""
    dice: random.Random

    @property
    def job(self) -> str:
        claim = self.run.read_claim(self.epoch)
        return str(claim.job_id if claim else None)

    @property
    def pocket(self) -> Breakable:
        return cast(Breakable, self.place)

    @property
    def nodes(self) -> list[str]:
        """The batch host first."""
        return nodelist.expand(self.place.ask("squeue", "--noheader", "--format=%N", f"--jobs={self.job}").strip())

    @property
    def job_start(self) -> float:
        """Unix seconds, by Slurm: the job's limit counts from there."""
        start = self.place.ask("squeue", "--noheader", "--format=%S", f"--jobs={self.job}").strip()
        return datetime.fromisoformat(start).timestamp()

    def signal_a_rank(self, number: signal.Signals) -> None:
        if not isinstance(self.place, Site):
            strike(self.run, number, self.dice)
            return
        step = ["srun", "--overlap", f"--jobid={self.job}", "--nodes=1", "--ntasks=1"]
        self.place.ask(*step, sys.executable, "-m", "envs.drill.ranks", str(self.run.path), number.name)


@dataclass(frozen=True)
class Fault:
    number: str
    """In the matrix of faults."""
    text: str
    inject: Callable[[Scene], None]
    causes: tuple[str, ...]
    """What the attempt's end may be called."""
    moment: str = STEP
    seconds: float = 2.0
    """For which the steps may go on after it."""
    replays: bool = False
    """Steps since the last save may be lost, and are done again; else none is."""
    mend: Callable[[Scene], None] | None = None
    """Repair of the cluster, once the attempt has ended."""
    check: Callable[[Scene], str | None] = lambda scene: None
    """What is wrong with an attempt's end besides; None: nothing."""


# --- what is done ---------------------------------------------------------------------------------------


def end_soon(place: Place, job: str, seconds: float) -> None:
    """Slurm's own time limit, moved close. An operator may do so."""
    end = datetime.fromtimestamp(time.time() + seconds).strftime("%Y-%m-%dT%H:%M:%S")
    place.ask("scontrol", "update", f"JobId={job}", f"EndTime={end}")


def time_limit(scene: Scene) -> None:
    """Slurm's own time limit, moved close: by seconds where we may, else to the next whole minute but one."""
    if not isinstance(scene.place, Site):
        end_soon(scene.place, scene.job, 8)
    else:
        minutes = int(time.time() - scene.job_start) // 60 + 2
        scene.place.ask("scontrol", "update", f"JobId={scene.job}", f"TimeLimit={minutes}")


def preempt(scene: Scene) -> None:
    nodes = f"--nodes={len(scene.pocket.nodes)}"
    scene.place.ask("sbatch", "--partition=urgent", nodes, "--exclusive", "--output=/dev/null", "--wrap=sleep 1")


def requeue(scene: Scene) -> None:
    scene.place.ask("scontrol", "requeue", scene.job)


def send(number: signal.Signals) -> Callable[[Scene], None]:
    return lambda scene: scene.signal_a_rank(number)


def send_twice(scene: Scene) -> None:
    """Two stop signals to ranks, up to half a second apart."""
    for number in scene.dice.choices((signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM), k=2):
        scene.signal_a_rank(number)
        time.sleep(scene.dice.random() / 2)


def ask_to_stop(scene: Scene) -> None:
    """`scancel --signal`: to every process of the job's step, or to the batch host's alone."""
    scene.place.ask("scancel", f"--signal={scene.dice.choice(('USR1', 'USR2', 'TERM'))}", scene.job)


def kill_again_at_the_start(scene: Scene) -> None:
    """kill -9, and again while the next attempt's ranks import, meet, and load."""
    scene.signal_a_rank(signal.SIGKILL)
    wait_until(lambda: len(scene.run.attempts()) >= scene.epoch, "the attempt's end")
    scene.epoch += 1
    wait_until(lambda: scene.run.newest_epoch() == scene.epoch and ranks(scene.run), "new ranks")
    time.sleep(scene.dice.random() * 2)
    scene.signal_a_rank(signal.SIGKILL)


def kill_step_daemon(scene: Scene) -> None:
    os.kill(scene.dice.choice(step_daemons(scene.run)), signal.SIGKILL)


def kill_slurmd(scene: Scene) -> None:
    scene.pocket.stop_slurmd(scene.nodes[-1])


def kill_both_daemons(scene: Scene) -> None:
    found = step_daemons(scene.run)
    kill_slurmd(scene)
    for pid in found:
        os.kill(pid, signal.SIGKILL)


def kill_node(scene: Scene) -> None:
    scene.pocket.kill_node(scene.nodes[-1])


def kill_batch_host(scene: Scene) -> None:
    """The supervisor dies with it: the next job writes the attempt's end."""
    scene.pocket.kill_node(scene.nodes[0])


def mend_nodes(scene: Scene) -> None:
    for node in scene.pocket.nodes:
        scene.pocket.start_slurmd(node)
    scene.pocket.wait_ready()


def crash_controller(scene: Scene) -> None:
    """kill -9 of slurmctld at the moment of a stop signal."""
    scene.pocket.stop_controller(crash=True)
    scene.signal_a_rank(signal.SIGTERM)


def mend_controller(scene: Scene) -> None:
    scene.pocket.start_controller()
    scene.pocket.wait_ready()


def lose_submitit_folder(scene: Scene) -> None:
    shutil.rmtree(scene.run.path / "submitit")
    time_limit(scene)


def stacks_are_there(scene: Scene) -> str | None:
    found = list(scene.run.attempt_dir(scene.epoch).glob("rank-*.stacks"))
    return None if found else "no stacks were written"


def no_later_commit(scene: Scene) -> str | None:
    """A lost attempt that lived on has committed nothing after the next one's claim."""
    later = scene.run.read_claim(scene.epoch + 1)
    folders = (scene.run.path / "checkpoints").glob(f"step-*-e{scene.epoch:04d}")
    late = [path.name for path in folders if later and path.stat().st_mtime > later.time]
    return f"a lost attempt committed {', '.join(late)}" if late else None


# --- the matrix -----------------------------------------------------------------------------------------

_LOST_NODE = ("node_failure", "crash", "requeued")
"""Whether the other ranks' connections break before Slurm misses the node."""

KILL = Fault("F5", "kill -9 of a rank", send(signal.SIGKILL), ("crash",), replays=True)
TIME_LIMIT = Fault("F3", "time limit, no signal", time_limit, ("timeout",), seconds=10)
PREEMPTION = Fault("F1", "urgent job wants the nodes", preempt, ("preemption",))
NODE_LOSS = Fault(
    "F6", "node loses its power", kill_node, _LOST_NODE, replays=True, mend=mend_nodes, check=no_later_commit
)

BLIND = replace(
    TIME_LIMIT, number="F24", text="time limit, scontrol does not run", causes=("signal", "timeout"), seconds=60
)
"""Slurm's own TERM is all that the ranks hear of it, up to half a minute late."""

QUICK = (KILL, TIME_LIMIT, PREEMPTION, NODE_LOSS)
"""What a cluster does most: the drill of ten minutes."""

AT_A_SITE = (KILL, replace(TIME_LIMIT, seconds=120))
"""What its user can do there: nobody kills its nodes, and a limit is moved by whole minutes."""

MATRIX = (
    PREEMPTION,
    TIME_LIMIT,
    KILL,
    replace(KILL, moment=SAVE),
    replace(KILL, moment=EVALUATION),
    Fault("F5", "kill -9, and again at the start", kill_again_at_the_start, ("crash",), replays=True),
    Fault("F6", "kill -9 of a slurmstepd", kill_step_daemon, _LOST_NODE, replays=True, check=no_later_commit),
    NODE_LOSS,
    Fault(
        "F6",
        "batch host loses its power",
        kill_batch_host,
        ("node_failure",),
        replays=True,
        mend=mend_nodes,
        check=no_later_commit,
    ),
    Fault(
        "F6",
        "kill -9 of slurmd and slurmstepd",
        kill_both_daemons,
        _LOST_NODE,
        replays=True,
        mend=mend_nodes,
        check=no_later_commit,
    ),
    Fault(
        "F7",
        "kill -9 of slurmd alone",
        kill_slurmd,
        _LOST_NODE,
        seconds=25,
        replays=True,
        mend=mend_nodes,
        check=no_later_commit,
    ),
    Fault("F8", "a rank is frozen", send(signal.SIGSTOP), ("hang",), replays=True, check=stacks_are_there),
    Fault("F15", "USR1 to a rank", send(signal.SIGUSR1), ("signal",)),
    Fault("F15", "two stop signals to ranks", send_twice, ("signal",)),
    Fault("F15", "a stop signal by scancel", ask_to_stop, ("signal",)),
    Fault("F18", "TERM while slurmctld is dead", crash_controller, ("signal",), mend=mend_controller),
    Fault("F19", "submitit's folder is deleted", lose_submitit_folder, ("timeout",), seconds=10),
)
"""What a run goes on after, in a chain of jobs."""

REQUEUE = Fault("F4", "scontrol requeue", requeue, ("requeued",), replays=True)
REQUEUED = (REQUEUE, replace(REQUEUE, moment=SAVE), PREEMPTION, TIME_LIMIT)
"""The same job again."""
RANDOM = [fault for fault in MATRIX if fault.number in ("F1", "F3", "F5", "F6", "F7", "F8")]
