"""Which cluster this is, and what its profile says."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from settings import ConfigError, expanded, nearest
from slurm import commands
from slurm.config import JobConfig
from slurm.environment import CONF
from slurm.errors import CommandFailed
from slurm.sites.fit import misfits
from slurm.sites.partition import Partition
from slurm.sites.profile import Limits, Profile, is_path, read_profile, recognizable
from slurm.sites.site import Site
from slurm.walltime import Walltime


@dataclass(frozen=True)
class Cluster:
    profile: Profile
    found_by: str
    """How it was chosen, in words."""
    site: Site | None = None
    """What its Slurm says of itself."""
    path: Path | None = None
    """Of a profile that was named by its file."""

    @property
    def reference(self) -> str:
        """What `--cluster` finds it by again."""
        return str(self.path or self.profile.name)

    @property
    def live(self) -> bool:
        """A Slurm that answers."""
        return self.site is not None

    @property
    def version(self) -> tuple[int, ...] | None:
        """Of its Slurm: (22, 5) for 22.05; None: it cannot be asked."""
        return self.site.version if self.site else None

    @cached_property
    def partitions(self) -> list[Partition]:
        """Asked for once; of a cluster that does not answer, what its profile says."""
        if not self.live:
            return [_by_profile(self.profile, name) for name in self.profile.partitions or ("",)]
        found = commands.partitions()
        if self.profile.gpus_are_asked:
            return found
        # Where nobody asks for GPUs, Slurm need not know of them.
        return [p if p.gpus_per_node else _with_gpus(p, self.profile) for p in found]

    def chosen(self, names: str | None) -> list[Partition]:
        """Where a job may run: the partitions that are named, as `gpu,long`, else the default. Raises ConfigError."""
        if not self.live:
            return [_by_profile(self.profile, name) for name in (names or "").split(",")]
        if not names:
            default = [partition for partition in self.partitions if partition.default] or self.partitions[:1]
            # Where the profile knows of GPUs and the default partition has none, the site goes by what a job asks for.
            elsewhere = self.profile.gpus_per_node and not any(p.gpus_per_node for p in default)
            return [_by_profile(self.profile)] if elsewhere or not default else default
        by_name = {p.name: p for p in self.partitions}
        for name in names.split(","):
            if name not in by_name:
                near = nearest(name, by_name)
                hint = f"did you mean {near}?" if near else f"there are: {', '.join(by_name)}"
                raise ConfigError(f"--partition {name}: there is no such partition: {hint}")
        return [by_name[name] for name in names.split(",")]

    def with_cache(self, tree: dict[str, Any], default: Path | str = "") -> dict[str, Any]:
        """A recipe's tree, its data prepared where the profile says unless it says so itself; else by default. Raises
        ConfigError."""
        named = f"profile {self.reference}: data_cache"
        folder, data = expanded(self.profile.data_cache or "", named) or str(default), tree.get("data")
        return {**tree, "data": {"cache": folder, **data}} if folder and isinstance(data, dict) else tree

    def default_walltime(self, partition: str | None) -> Walltime | None:
        """The time limit of a job that names none."""
        choice = self.chosen(partition)[0]
        return choice.default_walltime or choice.max_walltime


def find(name: str, dry_run: bool = False) -> Cluster:
    """The cluster that `--cluster` names; `auto`: the Slurm that answers, else local mode.

    Raises ConfigError, and CommandFailed when there is a Slurm that does not answer.
    """
    if name == "local":
        return Cluster(read_profile("local"), "--cluster local")
    site = _ask_site()
    if name == "auto":
        if site is None:  # a dry run shows what a cluster would get
            return Cluster(read_profile("generic" if dry_run else "local"), "no Slurm answers here")
        where = f"SLURM_CONF={os.environ[CONF]}" if CONF in os.environ else "this machine's Slurm"
        return Cluster(_claimed_by(site) or read_profile("generic"), where, site)
    profile = read_profile(name)
    path = Path(name).resolve() if is_path(name) else None
    ours = site is not None and (
        _is_of(site, profile) if path is None else fnmatch(site.name, profile.cluster_name or "*")
    )
    return Cluster(profile, f"--cluster {name}", site if ours else None, path)


def _ask_site() -> Site | None:
    """This machine's Slurm; None: it has none. One that is down is no reason to train right here."""
    try:
        return commands.site()
    except CommandFailed as error:
        raise CommandFailed(f"{error}; to train here without it: --cluster local", error.words) from None


def _with_gpus(partition: Partition, profile: Profile) -> Partition:
    return dataclasses.replace(partition, gpus_per_node=_by_profile(profile, partition.name).gpus_per_node)


def _claimed_by(site: Site | None) -> Profile | None:
    """The profile that knows this Slurm, by its ClusterName, else by the shell's variables."""
    profiles = [read_profile(name) for name in recognizable()]
    by_name = (p for p in profiles if site is not None and fnmatch(site.name, p.cluster_name or ""))
    by_shell = (p for p in profiles if p.detect and all(fnmatch(os.environ.get(k, ""), p.detect[k]) for k in p.detect))
    return next(by_name, None) or next(by_shell, None)


def _is_of(site: Site, profile: Profile) -> bool:
    """Whether this Slurm is the profile's; one whose ClusterName nobody has told may be any that is not another's."""
    if profile.cluster_name or profile.name == "generic":
        return fnmatch(site.name, profile.cluster_name or "*")
    other = _claimed_by(site)
    return other is None or other.name == profile.name or not other.cluster_name


def _by_profile(profile: Profile, name: str = "") -> Partition:
    """What is known of a cluster that cannot be asked."""
    told = profile.partitions.get(name)
    return Partition(
        name or profile.name,
        gpus_per_node=(told and told.gpus_per_node) or profile.gpus_per_node,
        cpus_per_node=None if told and told.gpus_per_node else profile.cpus_per_node,  # another kind of node
        min_nodes=told.min_nodes if told else 1,
        max_nodes=told.max_nodes if told else None,
        max_walltime=told.max_walltime if told else profile.max_walltime,
    )


def check_fits(job: JobConfig, cluster: Cluster) -> None:
    """Refuse what the cluster never gives, with the line that would work. Raises ConfigError."""
    profile = cluster.profile
    if profile.max_nodes is not None and job.nodes > profile.max_nodes:
        raise ConfigError(
            f"--nodes {job.nodes}: {profile.name} has {profile.max_nodes} node: take --nodes {profile.max_nodes}, a "
            f"cluster of this machine (launch.py pocket up --nodes {job.nodes}), or look at the script: "
            f"--cluster NAME --dry-run"
        )
    choices = cluster.chosen(job.partition)
    first = [next(misfits(job, choice), None) for choice in choices]
    if all(first):  # of several partitions Slurm takes one that fits
        raise ConfigError(str(first[0]))
    if cluster.site is None:
        _refuse_longer(job, profile.qos.get(job.qos or "", Limits()).max_walltime)
    else:
        check_access(job, choices, cluster.site)
        check_qos(job, cluster.site)


def check_access(job: JobConfig, choices: Sequence[Partition], site: Site) -> None:
    """With EnforcePartLimits=NO, Slurm's default, a job that its partition never admits waits in the queue for ever.
    Raises ConfigError."""
    if site.enforces_limits or len(choices) > 1 or not (job.account or job.qos):
        return
    name, access = choices[0].name, commands.partition_access(choices[0].name)
    if site.version >= (23, 2):  # AllowAccounts names whole trees of accounts then, which only the accounting knows
        access.pop("AllowAccounts", None)
    for flag, kind, value in (("--account", "Accounts", job.account), ("--qos", "Qos", job.qos)):
        allowed, denied = access.get(f"Allow{kind}", [str(value)]), access.get(f"Deny{kind}", [])
        if value and value not in allowed:
            raise ConfigError(f"{flag} {value}: partition {name} admits {', '.join(allowed)} only")
        if value in denied:
            raise ConfigError(f"{flag} {value}: partition {name} does not admit it: take another {flag} or --partition")


def check_qos(job: JobConfig, site: Site) -> None:
    """Raises ConfigError for a time limit that the QOS refuses."""
    if job.qos and job.walltime and site.accounts:
        _refuse_longer(job, commands.qos_max_walltime(job.qos))


def _refuse_longer(job: JobConfig, limit: Walltime | None) -> None:
    if limit is not None and job.walltime is not None and job.walltime > limit:
        raise ConfigError(
            f"--walltime {job.walltime}: the QOS {job.qos} allows {limit}: the run goes on by itself, "
            f"take --walltime {limit}"
        )


def with_continuation(job: JobConfig, cluster: Cluster) -> JobConfig:
    """What `--continue-by auto` means here. Behind a dependency a job gains no priority, so that every link of a chain
    would wait as long as a new job; the jobs of an array gain it together (measured: docs/decisions.md)."""
    if job.continue_by != "auto":
        return job
    site = cluster.site
    array = site is not None and site.ages and job.array_jobs <= site.largest_array
    return replace(job, continue_by="array" if array else "chain")


def full_node(partition: str | None, cluster: Cluster) -> int:
    """GPUs of a full node, which is what --gpus omitted asks for."""
    return max(1, min(choice.gpus_per_node or 0 for choice in cluster.chosen(partition)))


def valid_names(field: str, job: JobConfig, cluster: Cluster) -> Iterable[str]:
    """What a field of the job may be called here; empty: not known. Asked only after a refusal."""
    match field:
        case "account":
            return commands.associations()[0]
        case "qos":
            return commands.associations()[1]
        case "constraint":
            return frozenset().union(*(choice.features for choice in cluster.chosen(job.partition)))
        case "reservation":
            return commands.reservations()
        case "partition":
            return [partition.name for partition in cluster.partitions]
    return ()
