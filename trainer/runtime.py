"""This process among its peers: the one file that reads RANK and its kin."""

from __future__ import annotations

import os
import platform
import resource
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from settings import ConfigError
from trainer import claims

# A peer that has crashed closes its connections at once. What hangs is the watchdog's: its limits come first.
BEYOND_THE_WATCHDOG = 600.0  # seconds


@dataclass(frozen=True)
class Runtime:
    rank: int
    world_size: int
    local_world_size: int
    """Ranks of a node."""
    device: torch.device
    run_dir: Path
    epoch: int
    """This attempt's number: its claim."""
    deadline: float | None
    """Unix seconds at which the allocation ended when this attempt started."""
    cut_short: bool
    """The last attempt was cut before it had saved anything."""
    node_memory: Path | None
    """Folder for what is to outlive the ranks of this node, in its memory."""
    leader_host: str
    """Where rank 0 is, as the others reach it."""
    patience: float
    """Seconds after which a peer that says nothing is an error."""
    control: dist.ProcessGroup = field(repr=False)
    """Gloo, apart from the engine's group."""

    @property
    def device_name(self) -> str:
        return device_name(self.device)

    @property
    def nodes(self) -> int:
        return max(1, self.world_size // self.local_world_size)

    @property
    def leads(self) -> bool:
        return self.rank == 0

    # --- collectives of the control group: the same calls in the same order on every rank ---

    def sum(self, value: float) -> float:
        """Sum over all ranks in float64, in an order that depends on the world size only."""
        values = torch.tensor([value], dtype=torch.float64)
        dist.all_reduce(values, group=self.control)
        return float(values.item())

    def max(self, value: int) -> int:
        values = torch.tensor([value])
        dist.all_reduce(values, op=dist.ReduceOp.MAX, group=self.control)
        return int(values.item())

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, on every rank."""
        values = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def from_leader(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self.control)
        return values[0]

    def barrier(self) -> None:
        dist.barrier(group=self.control)


def device_name(device: torch.device) -> str:
    """As the driver calls it; `cpu`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def versions() -> dict[str, str]:
    """Of what decides the numbers."""
    own = {"python": platform.python_version(), "torch": torch.__version__, "transformers": version("transformers")}
    return own | ({"cuda": torch.version.cuda} if torch.version.cuda and torch.cuda.is_available() else {})


def start(run_dir: Path, longest_wait: float) -> Runtime:
    """Join the peers that torch's variables name; without them this process is alone.

    `longest_wait`: seconds that a rank may rightly wait for another one.
    """
    _allow_open_files()
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    rank = int(os.environ.get("RANK", 0))
    local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
    device = _device(int(os.environ.setdefault("LOCAL_RANK", "0")))  # DeepSpeed reads it too
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    if world_size > 1 and "MASTER_ADDR" not in os.environ:
        raise ConfigError(f"WORLD_SIZE={world_size} without MASTER_ADDR: start the ranks with torchrun or launch.py")
    given = os.environ.get("OUTLAST_ATTEMPT")
    record_collectives(run_dir / "logs" / (f"attempt-{int(given):04d}" if given else ""))
    patience = longest_wait + BEYOND_THE_WATCHDOG
    timeout = timedelta(seconds=patience)
    if "MASTER_ADDR" in os.environ:
        dist.init_process_group(backend, timeout=timeout)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)  # type: ignore[attr-defined]
    control = dist.new_group(backend="gloo", timeout=timeout)
    deadline = float(os.environ["OUTLAST_DEADLINE"]) if "OUTLAST_DEADLINE" in os.environ else None
    cut_short, host = "OUTLAST_CUT_SHORT" in os.environ, os.environ.get("MASTER_ADDR", "")
    memory = Path(os.environ["OUTLAST_NODE_MEMORY"]) if "OUTLAST_NODE_MEMORY" in os.environ else None
    place = rank, world_size, local_world_size, device, run_dir
    runtime = Runtime(*place, 0, deadline, cut_short, memory, host, patience, control)
    check_devices(runtime.gather((os.uname().nodename, _identity(device))))
    epoch = int(given) if given else runtime.from_leader(_claim(run_dir) if rank == 0 else None)
    return replace(runtime, epoch=epoch)


def _allow_open_files() -> None:
    """As many as the site lets us: rank 0 holds some sockets of every rank, and a resume opens each rank's file. The
    usual limit, 1,024, is for programs that select(), and would end a resume of some 200 ranks."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _claim(run_dir: Path) -> int:
    """An attempt that no supervisor has started. Nobody else removes what an earlier job's wrote of its end."""
    (run_dir / "deadline").unlink(missing_ok=True)
    return claims.claim(run_dir)


def _device(local_rank: int) -> torch.device:
    """This rank's device. With one visible GPU a rank it is that one: `check_devices` sees to it that they differ."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    index = local_rank % torch.cuda.device_count()
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def _identity(device: torch.device) -> str | None:
    """What tells a GPU from every other one of its host, whatever a rank is shown of them."""
    return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else None


def check_devices(devices: Sequence[tuple[str, str | None]]) -> None:
    """Refuse two ranks on one GPU, and ranks without one among others that have one. Raises ConfigError.

    `devices`: host and GPU of every rank, in the order of the ranks; without a GPU: None.
    """
    advice = "every rank needs its own: see --gpus, and what the site's GPU binding and CUDA_VISIBLE_DEVICES leave"
    without = [rank for rank, (_, gpu) in enumerate(devices) if gpu is None]
    if 0 < len(without) < len(devices):
        raise ConfigError(f"rank {without[0]} on {devices[without[0]][0]} sees no GPU, others do: {advice}")
    first: dict[tuple[str, str | None], int] = {}
    for rank, (host, gpu) in enumerate(devices):
        other = first.setdefault((host, gpu), rank)
        if gpu is not None and other != rank:
            raise ConfigError(f"ranks {other} and {rank} on {host} have the same GPU {gpu}: {advice}")


def record_collectives(folder: Path) -> None:
    """NCCL's own watchdog writes what torch's flight recorder holds to this folder, unless the user has set it up."""
    os.environ.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")
    if "TORCH_NCCL_TRACE_BUFFER_SIZE" not in os.environ:  # the older names of both still count
        os.environ.setdefault("TORCH_FR_BUFFER_SIZE", "2000")
    if "TORCH_NCCL_DEBUG_INFO_TEMP_FILE" not in os.environ:
        os.environ.setdefault("TORCH_FR_DUMP_TEMP_FILE", f"{folder}/nccl-rank-")
