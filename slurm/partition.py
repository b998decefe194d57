"""Partitions as sinfo shows them, and what of a job does not fit into one."""

from __future__ import annotations

import re
from dataclasses import dataclass

from slurm.config import JobConfig, Profile, counted, layout
from slurm.walltime import Walltime

# Partition, availability, longest and default walltime, nodes of a job, nodes by state, and what one node has.
FIELDS = "%P|%a|%l|%L|%s|%F|%G|%c|%m|%f"


@dataclass(frozen=True)
class Partition:
    """Where a job may run; where the nodes differ, the largest counts. None: not known, or no limit."""

    name: str
    default: bool = False
    state: str = "up"
    """up; down: jobs wait; drain, inactive: jobs are refused."""
    max_walltime: Walltime | None = None
    default_walltime: Walltime | None = None
    """What a job without --walltime gets; None: max_walltime."""
    min_nodes: int = 1
    max_nodes: int | None = None
    """Most nodes of one job."""
    nodes: int | None = None
    usable_nodes: int | None = None
    """Those that are neither down nor drained now."""
    gpus_per_node: int | None = None
    cpus_per_node: int | None = None
    memory_per_node: int | None = None
    """MB."""
    features: frozenset[str] = frozenset()

    @classmethod
    def of_profile(cls, profile: Profile) -> Partition:
        """What a profile says of a cluster that cannot be asked."""
        return cls(profile.name, gpus_per_node=profile.gpus_per_node, max_walltime=profile.max_walltime)

    @property
    def short(self) -> bool:
        """Some of its nodes are down or drained now."""
        return (self.usable_nodes or 0) < (self.nodes or 0)

    @property
    def where(self) -> str:
        """What a message calls it."""
        return self.name if self.nodes is None else f"partition {self.name}"


def parse(text: str) -> list[Partition]:
    """Output of `sinfo --noconvert --format=FIELDS`: a line for each kind of node in each partition."""
    kinds: dict[str, list[list[str]]] = {}
    for line in filter(None, text.splitlines()):
        name, *cells = line.strip().split("|")
        kinds.setdefault(name, []).append(cells)
    return [_partition(name, rows) for name, rows in kinds.items()]


def _partition(name: str, rows: list[list[str]]) -> Partition:
    state, longest, default, size = rows[0][:4]
    least, _, most = size.partition("-")  # `1-infinite`, `2-8`, `4`
    counts = [[int(count) for count in row[4].split("/")] for row in rows]  # allocated, idle, other, total
    return Partition(
        name=name.rstrip("*"),
        default=name.endswith("*"),
        state=state,
        max_walltime=read_limit(longest),
        default_walltime=read_limit(default),
        min_nodes=int(least),
        max_nodes=None if most == "infinite" else int(most or least),
        nodes=sum(total for *_, total in counts),
        usable_nodes=sum(allocated + idle for allocated, idle, *_ in counts),
        gpus_per_node=max(_gpus(row[5]) for row in rows),
        cpus_per_node=max(_number(row[6]) for row in rows),
        memory_per_node=max(_number(row[7]) for row in rows),
        features=frozenset(word for row in rows for word in row[8].split(",") if word != "(null)"),
    )


def read_limit(text: str) -> Walltime | None:
    """A limit of a partition or a QOS: `1-00:00:00`, also `30:00` (minutes and seconds), `infinite`, `n/a`."""
    try:
        return Walltime.parse(f"00:{text}" if re.fullmatch(r"\d+:\d\d", text) else text)
    except ValueError:
        return None


def _gpus(gres: str) -> int:
    return sum(int(count) for count in re.findall(r"\bgpu(?::[^:,()]+)?:(\d+)(?=[(,\s]|$)", gres))


def _number(text: str) -> int:
    """`64+`: nodes of this kind have 64 and more."""
    return int(text.rstrip("+"))


def misfit(job: JobConfig, partition: Partition) -> str | None:
    """The first thing of a job that a partition never gives, with what would work; None: it fits."""
    checks = (_state, _gpu_count, _node_count, _walltime, _cores, _memory)
    return next((line for line in (check(job, partition) for check in checks) if line), None)


def _state(job: JobConfig, partition: Partition) -> str | None:
    if partition.state in ("drain", "inactive"):
        return f"--partition {partition.name}: its state is {partition.state}, it takes no jobs now: choose another"
    return None


def _gpu_count(job: JobConfig, partition: Partition) -> str | None:
    gpus = partition.gpus_per_node
    if gpus is None or job.gpus_per_node <= gpus:
        return None
    return f"--gpus {job.gpus_per_node}: {partition.where} has {counted(gpus, 'GPU')} a node: {_same_ranks(job, gpus)}"


def _same_ranks(job: JobConfig, gpus: int) -> str:
    """The same number of ranks on nodes that exist."""
    if gpus == 0:
        return "choose a partition with GPUs by --partition"
    per_node = next(n for n in range(gpus, 0, -1) if job.world_size % n == 0)
    nodes = job.world_size // per_node
    return f"--nodes {nodes} --gpus {per_node} is the same {job.world_size} ranks ({layout(nodes, per_node)})"


def _node_count(job: JobConfig, partition: Partition) -> str | None:
    asked = f"--nodes {job.nodes}: {partition.where}"
    for most, gives in ((partition.nodes, "has"), (partition.max_nodes, "gives one job")):
        if most is not None and job.nodes > most:
            return f"{asked} {gives} {counted(most, 'node')}: take --nodes {most}"
    if job.nodes < partition.min_nodes:
        return f"{asked} gives one job no less than {counted(partition.min_nodes, 'node')}"
    return None


def _walltime(job: JobConfig, partition: Partition) -> str | None:
    limit = partition.max_walltime
    if limit is None or job.walltime is None or job.walltime <= limit:
        return None
    asked, where = f"--walltime {job.walltime}", partition.where
    return f"{asked}: {where} allows {limit}: the run goes on by itself, take --walltime {limit}"


def _cores(job: JobConfig, partition: Partition) -> str | None:
    cores, each = partition.cpus_per_node, job.cpus_per_gpu
    if cores is None or each is None or job.gpus_per_node * each <= cores:
        return None
    needed = f"{job.gpus_per_node} GPUs x {each} = {job.gpus_per_node * each} cores"
    most = cores // job.gpus_per_node
    return f"job.cpus_per_gpu={each}: {needed}, a node of {partition.where} has {cores}: take job.cpus_per_gpu={most}"


def _memory(job: JobConfig, partition: Partition) -> str | None:
    size = re.fullmatch(r"(\d+)([KMGT]?)B?", job.mem or "", re.IGNORECASE)
    has = partition.memory_per_node
    if size is None or has is None:
        return None
    wanted = int(size[1]) * {"K": 1 / 1024, "M": 1, "G": 1024, "T": 1024**2}[size[2].upper() or "M"]
    return (
        f"--mem {job.mem}: a node of {partition.where} has {has}M: take --mem 0 for all of it" if wanted > has else None
    )
