"""One start of the ranks: what the shims must know, and the command that starts them on every node.

Standard library only: every rank's shim imports it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from slurm.environment import OWN_DISK, Layout
from slurm.rundir import RunDir

CODE = Path(__file__).parent.parent
"""The folder of our code, which a foreign command must not see."""
_SHIM = "import sys; sys.path.insert(0, sys.argv.pop(1)); from slurm.node.shim import main; sys.exit(main(sys.argv[1]))"
EXITS = "rank-*.exit"
"""A rank's end, in the logs of its attempt."""


@dataclass(frozen=True)
class Step:
    run_dir: str
    epoch: int
    launcher: str
    """srun, torchrun, deepspeed or fork; `worker`: what an agent starts; `spawn`: all ranks of a node by one shim."""
    nodes: int
    ranks_per_node: int
    argv: tuple[str, ...]
    """The command of every rank."""
    foreign: bool = False
    """Not our trainer: it keeps default signal handlers and reads no stop file."""
    stop_signal: str = "TERM"
    """What a foreign command's ranks get, whatever the word to stop came by."""
    deadline: float | None = None
    """Unix seconds at which the allocation ends."""
    started: float = 0.0
    """Unix seconds by the batch host's clock."""
    cut_short: bool = False
    """Slurm took the nodes from the last attempt before it had committed a step."""
    forget: bool = False
    """No ranks: what they left in their nodes' memory goes."""
    python: str = sys.executable
    """The Python where the ranks are."""
    prefix: tuple[str, ...] = ()
    """What takes a process to where the ranks are (a container, another root), before their Python."""
    network: Mapping[str, str] = field(default_factory=dict)
    """The site's variables for the ranks, where nobody else has set them."""
    host_suffix: str = ""
    """What makes a node's name that of its fast interface."""
    node_local: str = OWN_DISK
    """A folder on each node's own disk."""
    environment: str = ""
    """Folder of the ranks' packed environment, as each node has unpacked it to its own disk."""
    unpack: str = ""
    """No ranks: this archive becomes `environment`, where it is not there yet."""

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
        return self.logs / exit_name(rank)

    def dump(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def load(cls, text: str) -> Step:
        data = json.loads(text)
        return cls(**{**data, "argv": tuple(data["argv"]), "prefix": tuple(data["prefix"])})


def read_exits(logs: Path, world_size: int = 0) -> dict[int, dict[str, Any]]:
    """Ends of an attempt's ranks so far, by rank: {"rank", "code", "signal", "memory", "oom", "host", "time"}, of some
    also {"asked"} or {"unfit"}. `world_size`: so many are looked for by their names too, since NFS may list a folder as
    it was 30 seconds ago, but answers for a name that nobody has asked for."""
    named = [logs / exit_name(rank) for rank in range(world_size)]
    found = {}
    for file in dict.fromkeys([*logs.glob(EXITS), *named]):
        with suppress(OSError, ValueError):
            end = json.loads(file.read_text(encoding="utf-8"))
            found[int(end["rank"])] = end
    return found


def exit_name(rank: int) -> str:
    return f"rank-{rank:04d}.exit"


def shim_argv(step: Step) -> list[str]:
    """The shim's own command. -I: neither a user's PYTHONPATH nor an image's decides what it imports. -S: no
    site-packages, 14 ms. The shim that forks its ranks needs both, for them."""
    python = sys.executable if step.prefix else step.python  # the one above the prefix is not yet where the ranks are
    flags = ["-P"] if step.launcher == "fork" and not step.prefix else ["-I", "-S"]
    return [python, *flags, "-c", _SHIM, str(CODE), step.dump()]


def enter(words: Sequence[str], run_dir: Path, binds: Sequence[str]) -> tuple[str, ...]:
    """A rank command with {run_dir} and {binds} (host:host,...) filled in, and a word with {bind} once for each path;
    the run folder is always bound."""
    paths = dict.fromkeys([str(run_dir), *binds])  # each once, in this order
    filled = {"{run_dir}": str(run_dir), "{binds}": ",".join(f"{path}:{path}" for path in paths)}
    each = [
        word.replace("{bind}", f"{path}:{path}") for word in words for path in (paths if "{bind}" in word else [""])
    ]
    return tuple(fill(word, filled) for word in each)


def fill(word: str, filled: Mapping[str, str]) -> str:
    """A word of a user's with {names} replaced."""
    for name, value in filled.items():
        word = word.replace(name, value)
    return word


def srun_argv(step: Step, cpus_per_rank: int | None, extra: Sequence[str] = ()) -> list[str]:
    """The step over all nodes: a task for each rank, or one a node where a launcher of the node starts the ranks.

    `extra`: the user's own words for srun (pyxis: --container-image=...).
    """
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
    return [*argv, *extra, *shim_argv(step)]
