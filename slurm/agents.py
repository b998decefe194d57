"""The launchers that torch and DeepSpeed bring along: one agent a node, whose workers are shims.

Both agents hide how a rank ended (torchrun returns 1 for everything) and take a stop signal for the end: torchrun kills
its workers 30 s after one and dies of USR1, DeepSpeed's terminates the whole tree. So they run with the stop signals
blocked and never hear of them; the node's shim signals the shims below the agent itself.
Standard library only: every rank's shim imports it.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Mapping

from slurm.rendezvous import Rendezvous


def torchrun(nodes: int, ranks: int, node_rank: int, meeting: Rendezvous, worker: list[str]) -> list[str]:
    """torchrun's agent for one node; every rank runs `worker`."""
    return [
        *(sys.executable, "-P", "-m", "torch.distributed.run"),
        *(f"--nnodes={nodes}", f"--nproc-per-node={ranks}", f"--node-rank={node_rank}", "--max-restarts=0"),
        *(f"--master-addr={meeting.master_addr}", f"--master-port={meeting.master_port}"),
        *("--no-python", *worker),
    ]


def deepspeed(
    slots: Mapping[str, int], devices: str | None, node_rank: int, meeting: Rendezvous, worker: list[str]
) -> list[str]:
    """DeepSpeed's launcher of one node, without the runner above it, which needs ssh or pdsh.

    `slots`: ranks of each host, as the hostfile says.
    `devices`: this node's CUDA_VISIBLE_DEVICES, since the launcher overwrites it with the ids that it is given here.
    """
    world: dict[str, list[int | str]] = {host: list(range(count)) for host, count in slots.items()}
    here = list(world)[node_rank]
    visible = devices.split(",") if devices else []
    if len(visible) >= len(world[here]):
        world[here] = list(visible[: len(world[here])])
    text = base64.urlsafe_b64encode(json.dumps(world).encode()).decode()
    return [
        *(sys.executable, "-P", "-m", "deepspeed.launcher.launch", "--log_level=warning"),
        *(f"--world_info={text}", f"--node_rank={node_rank}"),
        *(f"--master_addr={meeting.master_addr}", f"--master_port={meeting.master_port}"),
        *("--no_python", "--no_local_rank", *worker),
    ]
