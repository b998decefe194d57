"""Which cluster this is, and what its profile says."""

from __future__ import annotations

import os
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from settings import ConfigError, convert, nearest, read_yaml
from slurm import commands
from slurm.config import JobConfig, Profile, layout
from slurm.environment import CONF
from slurm.walltime import Walltime

PROFILES = Path(__file__).parent.parent / "envs" / "clusters"


@dataclass(frozen=True)
class Cluster:
    profile: Profile
    live: bool
    """A Slurm that answers."""
    found_by: str
    """How it was chosen, in words."""

    def default_walltime(self, partition: str | None) -> Walltime | None:
        """The time limit of a job that names none."""
        return self.profile.max_walltime


def find(name: str, dry_run: bool = False) -> Cluster:
    """The cluster that `--cluster` names; `auto`: the Slurm that answers, else local mode. Raises ConfigError."""
    if name == "local":
        return Cluster(read_profile("local"), False, "--cluster local")
    live = commands.cluster_name()
    if name == "auto":
        if live is None:  # a dry run shows what a cluster would get
            return Cluster(read_profile("generic" if dry_run else "local"), False, "no Slurm answers here")
        where = f"SLURM_CONF={os.environ[CONF]}" if CONF in os.environ else "this machine's Slurm"
        return Cluster(_by_cluster_name(live), True, where)
    profile = read_profile(name)
    return Cluster(profile, live is not None and fnmatch(live, profile.cluster_name or live), f"--cluster {name}")


def read_profile(name: str) -> Profile:
    path = Path(name) if name.endswith((".yaml", ".yml")) else PROFILES / f"{name}.yaml"
    if not path.is_file():
        names = [p.stem for p in sorted(PROFILES.glob("*.yaml"))]
        near = nearest(name, names)
        hint = f"did you mean {near}?" if near else f"known: {', '.join(names)}, or the path of a profile"
        raise ConfigError(f"--cluster {name}: there is no such profile: {hint}")
    return convert(read_yaml(path), Profile, str(path))


def _by_cluster_name(cluster_name: str) -> Profile:
    profiles = (read_profile(path.stem) for path in sorted(PROFILES.glob("*.yaml")))
    return next((p for p in profiles if fnmatch(cluster_name, p.cluster_name or "")), read_profile("generic"))


def check_fits(job: JobConfig, cluster: Cluster) -> None:
    """Refuse what the cluster cannot give, with the line that would work. Raises ConfigError."""
    profile = cluster.profile
    if profile.max_nodes is not None and job.nodes > profile.max_nodes:
        raise ConfigError(
            f"--nodes {job.nodes}: {profile.name} has {profile.max_nodes} node: take --nodes {profile.max_nodes}, a "
            f"cluster of this machine (launch.py pocket up --nodes {job.nodes}), or look at the script: "
            f"--cluster NAME --dry-run"
        )
    gpus, nodes, limit = profile.gpus_per_node, None, profile.max_walltime
    if cluster.live:
        partition = _partition(job)
        gpus, nodes, limit = partition.gpus_per_node, partition.nodes, partition.max_walltime
    where = f"partition {_partition(job).name}" if cluster.live else profile.name
    if gpus is not None and job.gpus_per_node > gpus:
        raise ConfigError(f"--gpus {job.gpus_per_node}: {where} has {gpus} GPUs a node: {_alternative(job, gpus)}")
    if nodes is not None and job.nodes > nodes:
        raise ConfigError(f"--nodes {job.nodes}: {where} has {nodes} nodes: take at most --nodes {nodes}")
    if limit is not None and job.walltime is not None and job.walltime > limit:
        raise ConfigError(
            f"--walltime {job.walltime}: {where} allows {limit}: the run goes on by itself, take --walltime {limit}"
        )


def full_node(partition: str | None, cluster: Cluster) -> int:
    """GPUs of a full node, which is what --gpus omitted asks for."""
    if cluster.live:
        return max(1, _find_partition(partition).gpus_per_node)
    return cluster.profile.gpus_per_node or 1


def _partition(job: JobConfig) -> commands.Partition:
    return _find_partition(job.partition)


def _find_partition(name: str | None) -> commands.Partition:
    known = commands.partitions()
    wanted = [p for p in known if (p.name == name if name else p.default)] or ([] if name else known[:1])
    if not wanted:
        names = [p.name for p in known]
        near = nearest(name or "", names)
        hint = f"did you mean {near}?" if near else f"there are: {', '.join(names)}"
        raise ConfigError(f"--partition {name}: there is no such partition: {hint}")
    return wanted[0]


def _alternative(job: JobConfig, gpus: int) -> str:
    """The same number of ranks on nodes that exist."""
    if gpus == 0:
        return "choose a partition with GPUs by --partition"
    per_node = next(n for n in range(gpus, 0, -1) if job.world_size % n == 0)
    nodes = job.world_size // per_node
    return f"--nodes {nodes} --gpus {per_node} is the same {job.world_size} ranks ({layout(nodes, per_node)})"
