"""`python -m trainer.probe FOLDER`: one rank of `launch.py doctor --nodes`: what its node is like, and its peers.

It writes a file of its own in FOLDER/attempt-1/, waits for signals, notes them, and leaves when FOLDER/leave is there.
"""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

from durable import nonce, write_atomic

LONGEST = 180.0
"""Seconds that a rank stays when nobody tells it to leave."""
_BYTES = {"nccl": 256 << 20, "gloo": 16 << 20}
_ROUNDS = 3
_ASKED = ("uuid", "driver_version", "ecc.errors.uncorrected.volatile.total")
_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)


class Probe:
    def __init__(self, folder: Path, attempt: str) -> None:
        name = f"{os.uname().nodename}-{nonce()}.json"  # in containers two ranks may have one pid
        self.file = folder / f"attempt-{attempt}" / name
        self.leave = folder / "leave"
        self.told: dict[str, Any] = {"host": os.uname().nodename, "heard": []}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        for signum in _SIGNALS:
            signal.signal(signum, self.hear)

    def hear(self, signum: int, frame: FrameType | None) -> None:
        self.told["heard"].append(signal.Signals(signum).name)

    def tell(self, **facts: Any) -> None:
        self.told.update(facts)
        write_atomic(self.file, json.dumps(self.told))

    def wait(self) -> None:
        """Until it may leave; each signal is written down when it comes. The second one is for the end."""
        end, written = time.monotonic() + LONGEST, len(self.told["heard"])
        while time.monotonic() < end and not self.leave.exists() and len(self.told["heard"]) < 2:
            time.sleep(0.05)
            if len(self.told["heard"]) > written:
                written = len(self.told["heard"])
                self.tell()


# --- of the node ----------------------------------------------------------------------------------------


def node_facts() -> dict[str, Any]:
    facts = {"python": sys.version.split()[0], "addresses": _addresses(os.uname().nodename)}
    return {**facts, "scratch": _scratch(), "gpus": _gpus()}


def _addresses(host: str) -> list[str]:
    """Of a host's name, as this node finds it; empty: none."""
    try:
        found = socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)
    except OSError:
        return []
    return list(dict.fromkeys(str(info[4][0]) for info in found))


def _scratch() -> dict[str, Any]:
    """The node's folder for temporary files."""
    folder = os.environ.get("TMPDIR") or "/tmp"
    try:
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            file.write(b"\0" * (1 << 20))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return {"folder": folder, "error": error.strerror or errno.errorcode.get(error.errno or 0, "?")}
    return {"folder": folder, "free_gb": round(shutil.disk_usage(folder).free / 1e9, 1)}


def _gpus() -> dict[str, Any]:
    """As nvidia-smi tells; `none`: why nobody was asked."""
    argv = ["nvidia-smi", f"--query-gpu={','.join(_ASKED)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=30)
    except FileNotFoundError:
        return {"none": "there is no nvidia-smi"}
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"error": str(error)}
    if done.returncode:
        return {"error": " ".join(f"{done.stdout} {done.stderr}".split())[:200]}
    rows = [[cell.strip() for cell in row] for row in csv.reader(done.stdout.splitlines()) if row]
    listed = [{"uuid": row[0], "driver": row[1], "ecc": int(row[2]) if row[2].isdigit() else None} for row in rows]
    return {"listed": listed}


# --- of all ranks ---------------------------------------------------------------------------------------


def together() -> dict[str, Any]:
    """Torch, this rank's device, an all-reduce over all ranks, and their clocks."""
    import torch
    import torch.distributed as dist

    cuda = torch.cuda.is_available()
    local = dist.get_node_local_rank(fallback_rank=0)
    device = torch.device("cuda", local % torch.cuda.device_count()) if cuda else torch.device("cpu")
    facts: dict[str, Any] = {
        "torch": torch.__version__,
        "devices": torch.cuda.device_count() if cuda else 0,
        "uuid": None,
    }
    if cuda:
        torch.cuda.set_device(device)
        facts["uuid"] = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    backend = "nccl" if cuda else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=LONGEST))
    control = dist.new_group(backend="gloo")
    facts |= {
        "rank": dist.get_rank(),
        "backend": backend,
        **_all_reduce(torch.ones(_BYTES[backend] // 4, device=device)),
    }
    dist.barrier(group=control)
    facts["clock"] = time.time()  # all ranks leave the barrier together
    return facts


def _all_reduce(values: Any) -> dict[str, Any]:
    """The best of some rounds: `gb_per_s` is what each rank sends, and receives."""
    import torch
    import torch.distributed as dist

    size, ranks, best = values.numel() * values.element_size(), dist.get_world_size(), float("inf")
    for _ in range(_ROUNDS):
        values.fill_(1.0)
        dist.barrier()
        began = time.perf_counter()
        dist.all_reduce(values)
        if values.is_cuda:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    right = bool((values == ranks).all())
    return {"sum_is_right": right, "gb_per_s": round(2 * (ranks - 1) / ranks * size / best / 1e9, 3)}


def main(folder: Path) -> None:
    """A further start of the job finds the first one's files, and proves by one of its own that it came."""
    attempt = os.environ["OUTLAST_ATTEMPT"]
    probe = Probe(folder, attempt)
    if attempt != "1":
        probe.tell(ready=True)
        return
    probe.tell(**node_facts())
    try:
        probe.tell(**together(), ready=True)
    except Exception as failure:
        probe.tell(error=f"{type(failure).__name__}: {str(failure).partition(chr(10))[0]}")
        raise
    probe.wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
