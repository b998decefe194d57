"""GPUs: what they hold, how fast they are by their data sheets, and what share of that training has reached on them.

Torch-free.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from settings import ConfigError, nearest

# Dense bf16 FLOP/s of one device (fp16 where there is no bf16), from the vendors' data sheets, which print twice as
# much for NVIDIA's newer ones: with sparsity. The first line counts all words of which the device's name has.
_PEAKS = {
    "GB200": 2500e12,
    "B200": 2250e12,
    "GH200": 989.4e12,
    "H200 NVL": 835.5e12,
    "H200": 989.4e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835.5e12,
    "H100": 989.4e12,
    "A100": 312e12,
    "A40": 149.7e12,
    "A30": 165e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "V100 PCIE": 112e12,
    "V100": 125e12,
    "MI325X": 1307e12,
    "MI300X": 1307e12,
    "MI300A": 980.6e12,
    "MI250X": 191.5e12,  # of one of its two dies: each is a device
    "MI250": 181e12,
    "MI210": 181e12,
}

_GIB = 2**30
_BYTES = {
    name: gib * _GIB
    for name, gib in (
        *(("a100-40", 39.4), ("a100-80", 79.2), ("h100-80", 79.1), ("h100-94", 93.1), ("h200", 139.8)),
        *(("gh200-96", 94.5), ("a40", 44.4), ("l40s", 44.4), ("a30", 23.7), ("l4", 22.0), ("v100-16", 15.8)),
        *(("b200", 178.4), ("v100-32", 31.7), ("mi300x", 191.5), ("mi250x", 63.9)),
    )
}
"""What the driver gives to a program, by the name that --gpus-of takes: a few percent less than the data sheet says
where error correction and the driver take their part. That of an H200 is known exactly (143,771 MiB); of the others
two digits count."""

HOST_BANDWIDTH = 200e9
"""Bytes a second of a node's memory, for optimizers that step there: assumed (two sockets of eight channels)."""
CPU = "cpu"
"""What --gpus-of calls ranks without a GPU: known only where it has been measured."""
CPU_FLOPS = 100e9
"""FLOP/s of a rank there by which an MFU counts: a yardstick, since no data sheet tells what a rank's cores reach."""
LINK_BANDWIDTH = 20e9
"""Bytes a second between a GPU and its host: assumed, PCIe 4 x16 in use."""


@dataclass(frozen=True)
class Device:
    name: str
    bytes: float
    flops: float
    """Of bf16 matrix products, a second: the data sheet's."""
    own: Reached | None = None
    """What the newest of the user's runs of the same model has reached on it."""
    measured: tuple[Reached, ...] = ()
    """What the user has measured on it (`plan --calibrate`)."""

    @property
    def on_gpu(self) -> bool:
        return self.name != CPU


def device(name: str) -> Device:
    """By what --gpus-of calls it: a100-40, h100-80. Raises ConfigError."""
    wanted = name.strip().lower()
    ours = [known for known in _BYTES if known == wanted or known.split("-")[0] == wanted]
    if len(ours) != 1:
        near = nearest(wanted, _BYTES)
        known = f"did you mean {near}?" if near else f"known here: {', '.join(_BYTES)}"
        raise ConfigError(f"--gpus-of {name}: {'which of ' + ' and '.join(ours) if ours else known}")
    flops = peak_flops(ours[0].split("-")[0])
    assert flops is not None
    return Device(ours[0], _BYTES[ours[0]], flops)


def kind_of(name: str) -> str | None:
    """What --gpus-of calls a device that calls itself `NVIDIA A100-SXM4-80GB`; None: not known, or a part of one."""
    words = set(re.split(r"[^a-z0-9]+", name.lower()))
    ours = [kind for kind in (*_BYTES, CPU) if kind.split("-")[0] in words and "mig" not in words]
    sized = [kind for kind in ours if f"{kind.partition('-')[2]}gb" in words]
    return (sized or ours)[0] if len(sized or ours) == 1 else None


def peak_flops(name: str) -> float | None:
    """FLOP/s of a device by its name; None: it is not known, or a part of one (MIG)."""
    words = set(re.split(r"[^a-z0-9]+", name.lower()))
    if "mig" in words:
        return None
    return next((peak for known, peak in _PEAKS.items() if set(known.lower().split()) <= words), None)


@dataclass(frozen=True)
class Reached:
    """MFU that was published: by the formula of trainer/records/throughput.py, or turned into it."""

    device: str
    billions: float
    """Parameters."""
    mfu: float
    recomputed: bool
    """With full gradient checkpointing."""
    source: str
    own: bool = False
    """The user's runs have reached it."""
    ranks: int | None = None
    """None: not known."""
    step: float | None = None
    """Seconds of one."""
    sent: float | None = None
    """Bytes that each of several ranks sent in it."""

    def __str__(self) -> str:
        recomputed = ", all recomputed" if self.recomputed else ""
        return f"{self.mfu:.1%} for {self.billions:.3g}B on {self.device}{recomputed}: {self.source}"


_FOUNDRY = "llm-foundry scripts/train/benchmarking, 8c8dd48 (2024)"
_PYTORCH = "PyTorch and IBM, maximizing training throughput (2024-05-21), without torch.compile"
_STAS = "ml-engineering, when to upgrade GPUs, 744d01e (2026), transformers and ZeRO 2"

REACHED = [
    Reached("a100", 7, 0.57, False, _PYTORCH),
    Reached("a100", 13, 0.51, False, _PYTORCH),
    Reached("a100", 70, 0.50, False, _PYTORCH),
    Reached("a100", 1, 0.599, False, _FOUNDRY),
    Reached("a100", 30, 0.553, True, _FOUNDRY),
    Reached("a100-40", 7, 0.509, True, _FOUNDRY),
    Reached("a100-40", 13, 0.439, True, _FOUNDRY),
    Reached("a100-40", 70, 0.359, True, _FOUNDRY),
    Reached("h100", 1, 0.418, False, _FOUNDRY),
    Reached("h100", 3, 0.423, False, _FOUNDRY),
    Reached("h100", 7, 0.37, False, _PYTORCH),
    Reached("h100", 13, 0.35, False, _PYTORCH),
    Reached("h100", 70, 0.32, False, _PYTORCH),
    Reached("h200", 8, 0.52, False, _STAS),
]
"""Of 2024 to 2026, on 8 to 464 GPUs with fast networks. (Granite 7B by transformers on four A100: 0.41, by the blog of
Hugging Face: a layout that communicates badly is a third slower.)"""
_ELSEWHERE = 0.40
"""Of a device that nobody has published: between the lines above."""


def reached(device: Device, parameters: float, ranks: int) -> Reached:
    """The user's own; else the line of the same device whose model is nearest in size, of those that the user has
    measured if there are any: then of one rank for one, of several for several, since a rank alone shares nothing."""
    if device.own is not None:
        return device.own
    lines = list(device.measured) or [line for line in REACHED if line.device == device.name]
    lines = lines or [line for line in REACHED if line.device == device.name.split("-")[0]]
    if not lines:
        return Reached(device.name, parameters / 1e9, _ELSEWHERE, False, "assumed: nothing is known of this device")

    def distance(line: Reached) -> tuple[bool, float]:
        other = line.ranks is not None and (line.ranks > 1) != (ranks > 1)
        return other, max(line.billions / (parameters / 1e9), parameters / 1e9 / line.billions)

    return min(lines, key=distance)
