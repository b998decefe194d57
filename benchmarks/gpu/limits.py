"""What nothing on this device can beat: a large product of bf16 matrices, a copy, the way to the host and back."""

from __future__ import annotations

import time
from typing import Any

import torch

from benchmarks.gpu.child import Tell
from benchmarks.gpu.place import Place


def measured(tell: Tell) -> None:
    """The device and its limits. FLOP/s and bytes a second; a copy's bytes are counted read and written."""
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    # No process group: what is found here is found even where there is no NCCL.
    place = Place(not cuda, time.monotonic() + 20, None, tell)  # type: ignore[arg-type]
    size, count = (8192, 1 << 30) if cuda else (256, 1 << 20)
    a, b = (torch.randn(size, size, dtype=torch.bfloat16, device=device) for _ in range(2))
    source = torch.randint(0, 256, (count,), dtype=torch.uint8, device=device)
    target, host = torch.empty_like(source), torch.empty(count, dtype=torch.uint8, pin_memory=cuda)
    works = {
        "gemm_bf16": lambda: torch.mm(a, b),
        "copy": lambda: target.copy_(source),
        "to_host": lambda: host.copy_(source, non_blocking=True),
        "from_host": lambda: target.copy_(host, non_blocking=True),
    }
    times, _ = place.in_turn(works, most=10)
    amounts = {"gemm_bf16": 2 * size**3, "copy": 2 * count, "to_host": count, "from_host": count}
    limits = {name: float(f"{amounts[name] / spent:.4g}") for name, spent in times.items()}
    tell({"reduced": not cuda, "device": described(cuda), "limits": limits})


def described(cuda: bool) -> dict[str, Any]:
    if not cuda:
        return {"name": "CPU"}
    found = torch.cuda.get_device_properties(0)
    capability = f"{found.major}.{found.minor}"
    return {"name": found.name, "bytes": found.total_memory, "capability": capability, "cuda": torch.version.cuda}
