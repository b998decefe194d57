"""The environment on both sides of Slurm: the one file that reads SLURM_*, and what the ranks get from it.

Standard library only: every rank's shim imports it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from slurm.node import node_memory

# Every variable of Slurm that we depend on. Names of 20.11 to 26.05; SLURM_STEP_* are of the srun step.
JOB_ID = "SLURM_JOB_ID"
ARRAY_ID, ARRAY_TASK = "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"
RESTART_COUNT = "SLURM_RESTART_COUNT"  # absent on the first start
JOB_NODELIST = "SLURM_JOB_NODELIST"
NODE_RANK = "SLURM_NODEID"  # relative to the step when read in a task
TASK_RANK = "SLURM_PROCID"
TASK_LOCAL_RANK = "SLURM_LOCALID"
NODE_NAME = "SLURMD_NODENAME"
LAUNCH_ADDRESS = "SLURM_LAUNCH_NODE_IPADDR"  # address of the host that runs srun
CPUS_PER_TASK = "SLURM_CPUS_PER_TASK"
GPUS_ON_NODE = "SLURM_GPUS_ON_NODE"
MEMORY_OF_NODE = "SLURM_MEM_PER_NODE"  # MiB; set where the job asks for memory
CONF = "SLURM_CONF"
DEVICES = "CUDA_VISIBLE_DEVICES"  # set by Slurm for a job with GPUs, else by the user

# An outer job's variables would silently pin or resize an inner one; SLURM_CONF says which Slurm to talk to.
_INHERITED = (
    *("SLURM_", "SLURMD_", "SBATCH_", "SRUN_", "SALLOC_", "SUBMITIT_", "OUTLAST_"),
    *("PMI", "OMPI_", "TORCHELASTIC_"),  # other launchers' words to their ranks
    *("SQUEUE_", "SINFO_", "SACCT_", "SCANCEL_"),  # a user's habits, which would change what these answer us
)
_RANK_NAMES = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT"),
    *("GROUP_WORLD_SIZE", "ROLE_NAME", "ROLE_RANK", "ROLE_WORLD_SIZE"),  # torchrun's other names
    *("CROSS_RANK", "CROSS_SIZE", "LOCAL_SIZE"),  # DeepSpeed's
    "NODE_RANK",  # Lightning's
)
_KEPT = (CONF, "OUTLAST_POCKET_DIR")
OWN_DISK = "/tmp"
"""Of a node, where no profile says better."""

CACHES = {
    "TRITON_CACHE_DIR": "triton",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "MIOPEN_USER_DB_PATH": "miopen",
    "MIOPEN_CUSTOM_CACHE_DIR": "miopen",
}
"""What compilers keep, by their own names. On NFS and Lustre these crash ranks, which lock and rename in them at once;
what lies in them is loaded as code."""
_SECRET = re.compile(r"(^|_)(TOKEN|KEY|SECRET)(_|$)|PASS(WORD|WD)(_|$)|.PWD$|APIKEY", re.IGNORECASE)


def without_job(environ: Mapping[str, str]) -> dict[str, str]:
    """`environ` as a new job or an unrelated process should see it: no traces of the job around it."""
    return {
        key: value
        for key, value in environ.items()
        if key in _KEPT or not (key.startswith(_INHERITED) or key in _RANK_NAMES)
    }


def is_secret(name: str) -> bool:
    """Whether a variable's value is nothing to write down: HF_TOKEN, but not MONKEY, PWD, OLDPWD."""
    return name != "OLDPWD" and _SECRET.search(name) is not None


def without_path(environ: Mapping[str, str], folder: Path) -> dict[str, str]:
    """`environ` without this folder in PYTHONPATH: what our script puts there is not for what comes after it."""
    paths = environ.get("PYTHONPATH", "").split(os.pathsep)
    return {**environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path != str(folder))}


def account(environ: Mapping[str, str] = os.environ) -> str | None:
    """The account that the user's shell names, as sbatch and salloc read it."""
    return environ.get("SBATCH_ACCOUNT") or environ.get("SLURM_ACCOUNT")


def overrides(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Variables of the user's shell that override a script's own flags, but for the account, which is read first."""
    return {name: value for name, value in environ.items() if name.startswith("SBATCH_") and name != "SBATCH_ACCOUNT"}


@dataclass(frozen=True)
class Allocation:
    """The job that this process was started by; without Slurm: no id, this host alone."""

    job_id: str | None
    """812; of an array 812_3, since 812 means all of it to Slurm's commands."""
    restart_count: int
    nodelist: str | None


def allocation(environ: Mapping[str, str] = os.environ, array: bool = True) -> Allocation:
    """`array`: the job may be of one; else such variables are an outer job's, which sbatch has handed on."""
    task = array and ARRAY_ID in environ
    job_id = f"{environ[ARRAY_ID]}_{environ[ARRAY_TASK]}" if task else environ.get(JOB_ID)
    return Allocation(job_id, int(environ.get(RESTART_COUNT, 0)), environ.get(JOB_NODELIST))


@dataclass(frozen=True)
class Task:
    """This process among the tasks of its step; without Slurm: the only one."""

    node_rank: int
    rank: int
    local_rank: int
    host: str
    launch_address: str | None
    cpus: int | None
    gpus: int | None = None
    """Those of its node that this task was given; None: Slurm gives none, or does not tell."""
    memory_mb: int | None = None
    """Of its node, in MiB, as the job asks for it."""


def task(environ: Mapping[str, str] = os.environ) -> Task:
    return Task(
        node_rank=int(environ.get(NODE_RANK, 0)),
        rank=int(environ.get(TASK_RANK, 0)),
        local_rank=int(environ.get(TASK_LOCAL_RANK, 0)),
        host=environ.get(NODE_NAME) or os.uname().nodename,
        launch_address=environ.get(LAUNCH_ADDRESS),
        cpus=_number(environ.get(CPUS_PER_TASK)),
        gpus=_gpus(environ),
        memory_mb=_number(environ.get(MEMORY_OF_NODE)),
    )


def _gpus(environ: Mapping[str, str]) -> int | None:
    """Slurm's word, and what is visible by it: where a site binds each task to its GPU, that is one."""
    told, visible = _number(environ.get(GPUS_ON_NODE)), environ.get(DEVICES)
    return told if told is None or visible is None else min(told, len([*filter(None, visible.split(","))]))


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() else None


@dataclass(frozen=True)
class Layout:
    """Ranks of an attempt: the same number on every node, numbered node by node."""

    nodes: int
    ranks_per_node: int

    @property
    def world_size(self) -> int:
        return self.nodes * self.ranks_per_node


def rank_variables(layout: Layout, rank: int, address: str, port: int) -> dict[str, str]:
    """torch's standard variables of one rank."""
    node_rank, local_rank = divmod(rank, layout.ranks_per_node)
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(layout.world_size),
        "LOCAL_RANK": str(local_rank),
        "LOCAL_WORLD_SIZE": str(layout.ranks_per_node),
        "GROUP_RANK": str(node_rank),
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
    }


def attempt_variables(
    run_dir: Path, attempt: int, deadline: float | None, cut_short: bool, hostfile: Path, progress: Path
) -> dict[str, str]:
    """What the trainer may know of its job."""
    out = {
        "OUTLAST_RUN_DIR": str(run_dir),
        "OUTLAST_ATTEMPT": str(attempt),
        "OUTLAST_PROGRESS": str(progress),
        "OUTLAST_HOSTFILE": str(hostfile),
        "OUTLAST_NODE_MEMORY": str(node_memory.folder(run_dir)),
    }
    if deadline is not None:
        out["OUTLAST_DEADLINE"] = f"{deadline:.0f}"
    if cut_short:
        out["OUTLAST_CUT_SHORT"] = "1"
    return out


def promised(
    layout: Layout,
    run_dir: Path,
    own: Mapping[str, str],
    site: Mapping[str, str | int],
    host_suffix: str,
    environ: Mapping[str, str] = os.environ,
) -> list[tuple[str, str]]:
    """What every rank gets under every launcher, as a table: name, and value or meaning. `own`: the job's own; `site`:
    the network's; `environ`: of the shell, which goes along."""
    ranks, nodes = layout.ranks_per_node, layout.nodes
    first = "an address of the first node that the others reach"
    first = f"the first node's name with {host_suffix} behind it, else another address of it" if host_suffix else first
    table = [
        ("RANK", f"0 to {layout.world_size - 1}, node by node"),
        ("WORLD_SIZE", str(layout.world_size)),
        ("LOCAL_RANK", f"0 to {ranks - 1}: the rank's device on its node"),
        ("LOCAL_WORLD_SIZE", str(ranks)),
        ("GROUP_RANK", f"0 to {nodes - 1}: the rank's node"),
        ("MASTER_ADDR", first if nodes > 1 else "127.0.0.1"),
        ("MASTER_PORT", "a free port of the first node, held for rank 0"),
        ("OUTLAST_RUN_DIR", str(run_dir)),
        ("OUTLAST_ATTEMPT", "1, 2, 3 ...: this start of the ranks"),
        ("OUTLAST_PROGRESS", "a file: a program may write its step there, for launch.py status"),
        ("OUTLAST_HOSTFILE", f"a file of {nodes} lines: host slots={ranks}"),
        ("OUTLAST_NODE_MEMORY", "a folder in the node's memory for what the trainer has staged"),
        ("OUTLAST_DEADLINE", "unix seconds at which the allocation ends, if it does"),
        ("OMP_NUM_THREADS", "your shell's, else the CPUs of a rank"),
    ]
    table += [(name, "your shell's, else a folder on the node's own disk") for name in CACHES]
    if nodes > 1:
        table.append(("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME's first, else the way that the host name hides"))
    network = {name: f"{value} (the site's)" for name, value in site.items()}
    network |= {name: f"{environ[name]} (your shell's)" for name in network if name in environ}
    return [*{**dict(table), **network, **own}.items()]


def worker_rank() -> int:
    """The rank that an agent (torchrun's, DeepSpeed's) has given this process."""
    return int(os.environ["RANK"])
