"""What an attempt runs with, and what of it is other than in the run's first: an upgrade between two attempts shows."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from trainer import claims
from trainer.config import differences

_PACKAGE = re.compile(r"([^-]+)-(.+)\.(?:dist|egg)-info")
_DRIVERS = {"nvidia": Path("/sys/module/nvidia/version"), "amdgpu": Path("/sys/module/amdgpu/version")}
SHOWN = 8
"""Changes that are said one by one."""


def found() -> dict[str, Any]:
    """Of this process. Packages by the names of their folders: importlib.metadata reads a file of each (111 of them
    in 1 s on a slow disk, against 10 ms)."""
    drivers = {name: path.read_text().strip() for name, path in _DRIVERS.items() if path.exists()}
    about = {"python": platform.python_version(), "machine": platform.machine(), "torch": torch.__version__}
    return {**about, "driver": drivers, "packages": _packages(), "prefix": sys.prefix}


def _packages() -> dict[str, str]:
    names: list[str] = []
    for folder in reversed(sys.path):
        with suppress(
            OSError
        ):  # an archive, or a folder that is not there or not ours to read: Python passes it over too
            names += os.listdir(folder)
    matches = filter(None, map(_PACKAGE.fullmatch, names))
    return dict(sorted((match[1], match[2]) for match in matches if match[1] != "torch"))


def note(run_dir: Path, epoch: int) -> list[str]:
    """By one rank: written into our claim. Returns what is other than in the first attempt that has told."""
    ours = found()
    with suppress(OSError):  # a full disk must not end the training
        claims.note(run_dir, epoch, software=ours)
    return changes(claims.first(run_dir, "software") or ours, ours)


def changes(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """`torch 2.13.0 -> 2.14.0`, a line each. Where it lies may change with the node."""
    then, today = ({key: value for key, value in one.items() if key != "prefix"} for one in (was, now))
    return [f"{key.removeprefix('packages.')} {old} -> {new}" for key, old, new in differences(then, today)]


def told(found: list[str]) -> str:
    """In one line."""
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return f"other software than in the run's first attempt: {', '.join(found[:SHOWN])}{more}"
