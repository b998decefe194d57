"""A first profile of a site, from what its Slurm says of itself: `launch.py doctor --write-profile NAME`."""

from __future__ import annotations

import os
from datetime import date
from typing import Any

from durable import write_atomic
from settings import ConfigError, dump_yaml
from slurm import commands
from slurm.sites.cluster import Cluster
from slurm.sites.partition import Partition
from slurm.sites.profile import own_folder, read_profile
from slurm.submission import check_name

_UNKNOWN = """\
# What Slurm does not tell. A line without its leading # is a fact; docs/sites.md says what each one does.
# gpu: a100-80                    # a kind of launch.py plan --gpus-of: what cannot fit is refused
# mem_per_gpu: 120G               # asked for with each GPU where no memory is named
# whole_nodes: true               # a job gets, and pays, nodes whole
# account: {form: the group's name, required: true}
# scratch: {path: $SCRATCH, purge_days: 90}
# internet: {login: true, compute: false}
# network: {environment: {NCCL_SOCKET_IFNAME: ib0, GLOO_SOCKET_IFNAME: ib0}}
# never: {mem: "memory comes with the GPUs here"}
# billing: GPU-hours
"""


def write(name: str, cluster: Cluster) -> str:
    """Returns what was written, and where. Raises ConfigError: it would replace a file, or no Slurm answers."""
    check_name(name)
    path = own_folder() / f"{name}.yaml"
    if cluster.site is None:
        raise ConfigError(f"--write-profile {name}: no Slurm answers here: log in to the cluster")
    if path.exists():
        raise ConfigError(f"--write-profile {name}: {path} is there: remove it first, or take another name")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text(name, cluster, date.today()))
    try:
        read_profile(str(path))
    except ConfigError:
        path.unlink()
        raise
    return f"{path}\nRead it, fill in what Slurm does not tell, then: launch.py --cluster {name} --dry-run RECIPE"


def text(name: str, cluster: Cluster, today: date) -> str:
    """The YAML of a profile."""
    assert cluster.site is not None
    partitions = commands.partitions()
    default = next((one for one in partitions if one.default), None)
    usual = _usual(partitions, default)
    source = f"{today} scontrol show config, sinfo"
    facts: dict[str, Any] = {"description": f"{cluster.site.name}, as its Slurm describes itself"}
    facts |= {"cluster_name": cluster.site.name, "checked": str(today), "sources": {"LIVE": source}}
    facts |= {key: value for key, value in _node(usual).items() if value}
    facts |= {"scratch": {"path": "$SCRATCH"}} if os.environ.get("SCRATCH") else {}
    facts["partitions"] = {one.name: _partition(one, usual) for one in partitions}
    job: dict[str, Any] = {"partition": usual.name} if usual else {}
    if usual is not None and len(usual.gpu_types) == 1:
        job["gpu_type"] = next(iter(usual.gpu_types))
    facts["job"] = job
    measured = [key for key in ("gpus_per_node", "cpus_per_node", "partitions", "job") if facts.get(key)]
    facts["evidence"] = {key: "m LIVE" for key in measured}
    return f"{dump_yaml({key: value for key, value in facts.items() if value})}{_UNKNOWN}"


def _usual(partitions: list[Partition], default: Partition | None) -> Partition | None:
    """The partition that a job goes to: with GPUs, the default if it has some."""
    with_gpus = [one for one in partitions if one.gpus_per_node]
    return default if default in with_gpus or not with_gpus else with_gpus[0]


def _node(usual: Partition | None) -> dict[str, Any]:
    if usual is None:
        return {}
    return {"gpus_per_node": usual.gpus_per_node, "cpus_per_node": usual.cpus_per_node}


def _partition(one: Partition, usual: Partition | None) -> dict[str, Any]:
    facts: dict[str, Any] = {"max_walltime": str(one.max_walltime) if one.max_walltime else None}
    facts |= {"min_nodes": one.min_nodes if one.min_nodes > 1 else None, "max_nodes": one.max_nodes}
    if usual is not None and one.gpus_per_node and one.gpus_per_node != usual.gpus_per_node:
        facts["gpus_per_node"] = one.gpus_per_node
    return {key: value for key, value in facts.items() if value}
