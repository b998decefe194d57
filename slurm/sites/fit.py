"""What of a job a partition never gives."""

from __future__ import annotations

import re
from collections.abc import Iterator

from slurm.config import JobConfig, counted, layout
from slurm.sites.partition import Partition


def misfits(job: JobConfig, partition: Partition) -> Iterator[str]:
    """What of a job a partition never gives, each with what would work; none: it fits."""
    checks = (_state, _gpu_count, _node_count, _walltime, _cores, _memory)
    return (line for line in (check(job, partition) for check in checks) if line)


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
