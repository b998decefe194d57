"""sinfo's lines as Slurm 22.05 wrote them, and what does not fit."""

from __future__ import annotations

from datetime import timedelta

import pytest

from slurm.config import JobConfig
from slurm.sites.fit import misfits
from slurm.sites.partition import Partition, parse
from slurm.walltime import Walltime

TEXT = """\
batch*|up|1-00:00:00|30:00|1-infinite|1/1/0/2|gpu:4|64|16000|a100,nvlink
batch*|up|1-00:00:00|30:00|1-infinite|0/0/1/1|gpu:a100:8(S:0-1)|128+|512000+|h100
long|up|infinite|n/a|2-8|0/4/0/4|(null)|64|16000|(null)
short|inactive|30:00|n/a|1|0/1/0/1|gpu:2080ti:2,gpu:1g.5gb:7,nvme:1|8|1000|(null)
empty|up|infinite|n/a|1-infinite|0/0/0/0|(null)|0|0|(null)
"""


def test_partitions_with_mixed_nodes() -> None:
    batch, long, short, empty = parse(TEXT)
    assert (batch.name, batch.default, batch.nodes, batch.usable_nodes, batch.short) == ("batch", True, 3, 2, True)
    assert (batch.gpus_per_node, batch.cpus_per_node, batch.memory_per_node) == (8, 128, 512000)
    assert batch.features == {"a100", "nvlink", "h100"}
    assert (batch.max_walltime, batch.default_walltime) == (timedelta(days=1), timedelta(minutes=30))
    assert (long.max_walltime, long.default_walltime, long.gpus_per_node, long.features) == (None, None, 0, set())
    assert (long.min_nodes, long.max_nodes, long.default, long.short) == (2, 8, False, False)
    assert (short.state, short.max_walltime, short.gpus_per_node) == ("inactive", timedelta(minutes=30), 9)
    assert (short.min_nodes, short.max_nodes, empty.nodes) == (1, 1, 0)


GPU = Partition(
    "gpu",
    max_walltime=Walltime.parse("1-00:00:00"),
    min_nodes=2,
    max_nodes=4,
    nodes=8,
    gpus_per_node=4,
    cpus_per_node=64,
    memory_per_node=512000,
)


@pytest.mark.parametrize(
    ("job", "line"),
    [
        ({}, None),
        ({"mem": "0", "walltime": Walltime.parse("1-00:00:00"), "cpus_per_gpu": 16, "nodes": 4}, None),
        ({"mem": "500G"}, None),
        ({"mem": "a lot"}, None),  # sbatch itself says how it is written
        ({"gpus_per_node": 8}, "--gpus 8: partition gpu has 4 GPUs a node: --nodes 4 --gpus 4 is the same 16 ranks (4 nodes x 4 GPUs = 16 ranks)"),
        ({"nodes": 9}, "--nodes 9: partition gpu has 8 nodes: take --nodes 8"),
        ({"nodes": 5}, "--nodes 5: partition gpu gives one job 4 nodes: take --nodes 4"),
        ({"nodes": 1}, "--nodes 1: partition gpu gives one job no less than 2 nodes"),
        ({"walltime": Walltime.parse("30:00:00")}, "--walltime 1-06:00:00: partition gpu allows 1-00:00:00: the run goes on by itself, take --walltime 1-00:00:00"),
        ({"cpus_per_gpu": 17}, "job.cpus_per_gpu=17: 4 GPUs x 17 = 68 cores, a node of partition gpu has 64: take job.cpus_per_gpu=16"),
        ({"mem": "501G"}, "--mem 501G: a node of partition gpu has 512000M: take --mem 0 for all of it"),
    ],
)  # fmt: skip
def test_misfits(job: dict[str, object], line: str | None) -> None:
    config = JobConfig(**{"name": "x", "nodes": 2, "gpus_per_node": 4, **job})  # type: ignore[arg-type]
    assert next(misfits(config, GPU), None) == line


def test_a_partition_that_takes_no_jobs() -> None:
    job = JobConfig(name="x", partition="gpu")
    assert not list(misfits(job, Partition("gpu", state="down")))  # jobs wait until it is up again
    assert next(misfits(job, Partition("gpu", state="drain", nodes=1))) == (
        "--partition gpu: its state is drain, it takes no jobs now: choose another"
    )
