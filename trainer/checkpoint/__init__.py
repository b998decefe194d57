"""One folder that every engine reads at every world size, and that is never half there.

step-00001200-e0007/
    rank-0000.safetensors ...   flat ranges of every parameter and its moments, and the rank's RNG
    MANIFEST.json               written last: sizes and block hashes of every file, and what lies where
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

_NAME = re.compile(r"step-(\d{8})-e(\d{4,})")

MANIFEST = "MANIFEST.json"


class Point(NamedTuple):
    """A committed state: the steps that were done, and the epoch that saved them. Nothing saved: (0, 0)."""

    step: int
    epoch: int


class CheckpointBroken(Exception):
    """A checkpoint that does not verify; the message says what, in which file."""


def folder_name(point: Point) -> str:
    return f"step-{point.step:08d}-e{point.epoch:04d}"


def named(name: str) -> Point | None:
    """What a folder's name says that it holds; None: no run gives such a name."""
    match = _NAME.fullmatch(name)
    return Point(int(match[1]), int(match[2])) if match else None


def names(checkpoints: Path) -> list[str]:
    """What lies in the folder of a run's checkpoints. Raises OSError where that cannot be read: Path.glob would find
    nothing in it (from Python 3.12 on), and the run would start at step 0."""
    try:
        return os.listdir(checkpoints)
    except FileNotFoundError:
        return []


def committed(checkpoints: Path) -> list[Point]:
    """Checkpoints whose folder carries its final name, newest first. One that has lost its manifest is among them, so
    that a resume says that it passed it over."""
    return sorted(filter(None, map(named, names(checkpoints))), reverse=True)
