"""RUNS/devices.yaml: what the user has measured of devices; the plan takes it before what is published. Torch-free."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from msgspec.structs import asdict
from msgspec.structs import replace as altered

from durable import write_atomic
from settings import ConfigError, Count, Positive, Struct, convert, dump_yaml, read_yaml, to_plain
from trainer.plan import devices
from trainer.plan.devices import CPU, CPU_FLOPS, Device, Reached

NAME = "devices.yaml"


class Line(Struct, frozen=True):
    billions: Positive
    """Parameters that are active for a token."""
    mfu: Positive
    """With nothing computed again."""
    source: str
    ranks: Count | None = None
    step: Positive | None = None
    """Seconds of one."""
    sent: Positive | None = None
    """Bytes that each of several ranks sent in it."""


class Entry(Struct, frozen=True):
    reached: list[Line]
    bytes: Positive | None = None
    """Of a node's memory, where the device is its CPU."""


class Devices(Struct, frozen=True):
    devices: dict[str, Entry] = {}
    """By what --gpus-of calls them."""


def plain(name: str) -> Device:
    """Without what is measured. Raises ConfigError."""
    return Device(CPU, 0.0, CPU_FLOPS) if name.strip().lower() == CPU else devices.device(name)


def device(name: str, runs: Path) -> Device:
    """With what is measured. Raises ConfigError."""
    known, found = plain(name), _read(runs)
    entry = found.devices.get(known.name, Entry([]))
    lines = (Reached(known.name, recomputed=False, own=True, **asdict(line)) for line in entry.reached)
    known = replace(known, bytes=known.bytes or entry.bytes or 0.0, measured=tuple(lines))
    if not known.bytes:
        raise ConfigError(f"--gpus-of {name}: {runs / NAME} does not know it: launch.py plan --calibrate RUN")
    return known


def keep(runs: Path, kind: str, lines: list[Line], memory: float | None) -> None:
    """Before the others of this device; what the same source has said before is gone. Raises ConfigError."""
    found = _read(runs)
    entry = found.devices.get(kind, Entry([]))
    others = [line for line in entry.reached if line.source not in {line.source for line in lines}]
    entry = altered(entry, reached=[*lines, *others], bytes=memory or entry.bytes)
    text = dump_yaml(to_plain(altered(found, devices={**found.devices, kind: entry})))
    try:
        write_atomic(runs / NAME, text)
    except OSError as error:
        raise ConfigError(f"{runs / NAME}: {error.strerror}: give --runs-dir a folder that can be written") from None


def _read(runs: Path) -> Devices:
    path = runs / NAME
    return convert(read_yaml(path), Devices, str(path)) if path.is_file() else Devices()
