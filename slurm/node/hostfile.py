"""DeepSpeed's hostfile: `host slots=N`, one line a node. Standard library only: the shims read it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from durable import write_atomic


def text(hosts: Sequence[str], slots: int) -> str:
    return "".join(f"{host} slots={slots}\n" for host in hosts)


def write(path: Path, hosts: Sequence[str], slots: int) -> Path:
    write_atomic(path, text(hosts, slots))
    return path


def read(path: Path) -> dict[str, int]:
    """Ranks of each host, in the order of the file."""
    lines = (line.split(" slots=") for line in path.read_text(encoding="utf-8").splitlines())
    return {host: int(slots) for host, slots in lines}
