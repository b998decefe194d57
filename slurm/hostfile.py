"""DeepSpeed's hostfile: `host slots=N`, one line a node."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from durable import write_atomic


def text(hosts: Sequence[str], slots: int) -> str:
    return "".join(f"{host} slots={slots}\n" for host in hosts)


def write(path: Path, hosts: Sequence[str], slots: int) -> Path:
    write_atomic(path, text(hosts, slots))
    return path
