"""One start of the ranks: what the shims must know, and the command that starts them on every node.

Standard library only: every rank's shim imports it.
"""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from slurm.environment import Layout
from slurm.rundir import RunDir


@dataclass(frozen=True)
class Step:
    run_dir: str
    epoch: int
    launcher: str
    """srun, torchrun or fork; `worker`: what torchrun itself starts; `spawn`: all ranks of a node without srun."""
    nodes: int
    ranks_per_node: int
    argv: tuple[str, ...]
    """The command of every rank."""
    foreign: bool = False
    """Not our trainer: it keeps default signal handlers and reads no stop file."""
    deadline: float | None = None
    """Unix seconds at which the allocation ends."""

    @property
    def run(self) -> RunDir:
        return RunDir(Path(self.run_dir))

    @property
    def logs(self) -> Path:
        return self.run.attempt_dir(self.epoch)

    @property
    def layout(self) -> Layout:
        return Layout(self.nodes, self.ranks_per_node)

    def exit_file(self, rank: int) -> Path:
        return self.logs / f"rank-{rank:04d}.exit"

    def dump(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def load(cls, text: str) -> Step:
        data = json.loads(text)
        return cls(**{**data, "argv": tuple(data["argv"])})


def read_exits(logs: Path) -> dict[int, dict[str, Any]]:
    """Ends of an attempt's ranks so far, by rank: {"rank", "code", "signal", "host", "time"}."""
    found = {}
    for file in logs.glob("rank-*.exit"):
        with suppress(OSError, ValueError):
            end = json.loads(file.read_text(encoding="utf-8"))
            found[int(end["rank"])] = end
    return found


def shim_argv(step: Step) -> list[str]:
    """The shim's own command. -P: the working folder is not a place to import from. -S: no site-packages, 14 ms."""
    site = [] if step.launcher == "fork" else ["-S"]
    return [sys.executable, "-P", *site, "-m", "slurm.shim", step.dump()]


def srun_argv(step: Step, cpus_per_rank: int | None) -> list[str]:
    """The step over all nodes: a task for each rank, or one a node where a launcher of the node starts the ranks."""
    tasks = step.ranks_per_node if step.launcher == "srun" else 1
    argv = [
        "srun",
        f"--nodes={step.nodes}",
        f"--ntasks={step.nodes * tasks}",
        f"--ntasks-per-node={tasks}",
        # A crash ends the step at once; ranks that leave 3 s apart after a stop all finish (both measured).
        "--kill-on-bad-exit=1",
        "--wait=0",
        # Every rank sees its node's GPUs and takes its own by LOCAL_RANK: one visible GPU a task breaks NCCL's P2P.
        "--gpu-bind=none",
        "--mpi=none",
        "--input=none",
        "--export=ALL",
    ]
    if cpus_per_rank:  # said here, since srun 22.05 to 23.02 does not read SLURM_CPUS_PER_TASK
        argv.append(f"--cpus-per-task={cpus_per_rank * step.ranks_per_node // tasks}")
    return [*argv, *shim_argv(step)]
