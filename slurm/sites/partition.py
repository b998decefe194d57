"""Partitions as sinfo shows them."""

from __future__ import annotations

import re
from dataclasses import dataclass

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
    gpu_types: frozenset[str] = frozenset()
    """As Slurm calls them."""
    cpus_per_node: int | None = None
    memory_per_node: int | None = None
    """MB."""
    features: frozenset[str] = frozenset()

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
        gpu_types=frozenset(kind for row in rows for kind in re.findall(r"\bgpu:([^:,()\d][^:,()]*):\d", row[5])),
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
