"""The launchers that other packages bring along: one agent a node, whose workers are shims.

Both agents hide how a rank ended (torchrun returns 1 for everything) and take a stop signal for the end: torchrun kills
its workers 30 s after one and dies of USR1, DeepSpeed's terminates the whole tree. So they run with the stop signals
blocked and never hear of them; the node's shim signals the shims below the agent itself.
Standard library only: every rank's shim imports it.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Callable, Mapping
from typing import NamedTuple


class Node(NamedTuple):
    """What an agent is told of the node that it starts on."""

    node_rank: int
    slots: Mapping[str, int]
    """Ranks of each host, as the hostfile says."""
    devices: str | None
    """This node's CUDA_VISIBLE_DEVICES."""
    master_addr: str
    master_port: int
    worker: list[str]
    """What every rank runs."""


class Agent(NamedTuple):
    package: str
    """The ranks' Python must have it."""
    argv: Callable[[Node], list[str]]


def torchrun(node: Node) -> list[str]:
    ranks = list(node.slots.values())[node.node_rank]
    return [
        *(sys.executable, "-P", "-m", "torch.distributed.run"),
        *(f"--nnodes={len(node.slots)}", f"--nproc-per-node={ranks}", f"--node-rank={node.node_rank}"),
        *("--max-restarts=0", f"--master-addr={node.master_addr}", f"--master-port={node.master_port}"),
        *("--no-python", *node.worker),
    ]


def deepspeed(node: Node) -> list[str]:
    """DeepSpeed's launcher of one node, without the runner above it, which needs ssh or pdsh. It overwrites
    CUDA_VISIBLE_DEVICES with the ids that it is given here."""
    world: dict[str, list[int | str]] = {host: list(range(count)) for host, count in node.slots.items()}
    here = list(world)[node.node_rank]
    visible = node.devices.split(",") if node.devices else []
    if len(visible) >= len(world[here]):
        world[here] = list(visible[: len(world[here])])
    text = base64.urlsafe_b64encode(json.dumps(world).encode()).decode()
    return [
        *(sys.executable, "-P", "-m", "deepspeed.launcher.launch", "--log_level=warning"),
        *(f"--world_info={text}", f"--node_rank={node.node_rank}"),
        *(f"--master_addr={node.master_addr}", f"--master_port={node.master_port}"),
        *("--no_python", "--no_local_rank", *node.worker),
    ]


AGENTS = {"torchrun": Agent("torch", torchrun), "deepspeed": Agent("deepspeed", deepspeed)}
"""By the word in JobConfig.launcher."""
