"""Where a drill takes place: the pocket cluster, whose daemons and nodes can be hurt, or the site's own Slurm."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from envs.drill.watch import PATIENCE
from envs.pocket.errors import PocketError
from slurm.environment import without_job

ROOT = Path(__file__).parent.parent.parent


class Place(Protocol):
    def env(self) -> dict[str, str]:
        """Of a process that talks to this Slurm."""

    def ask(self, *argv: str) -> str:
        """Output of a Slurm command. Raises PocketError."""

    def jobs(self) -> list[str]:
        """Ids of our jobs that wait or run."""


class Breakable(Place, Protocol):
    """A pocket cluster."""

    @property
    def nodes(self) -> list[str]: ...

    def wait_ready(self) -> None: ...

    def stop_slurmd(self, node: str) -> None: ...

    def start_slurmd(self, node: str) -> None: ...

    def kill_node(self, node: str) -> None: ...

    def stop_controller(self, crash: bool = False) -> None: ...

    def start_controller(self) -> None: ...


@dataclass(frozen=True)
class Site:
    """The Slurm that this machine belongs to: what its user may do there, no more."""

    cluster: str = "auto"
    """Its profile: a name, or a path from / on."""

    def env(self) -> dict[str, str]:
        return without_job(os.environ)

    def ask(self, *argv: str) -> str:
        try:
            done = subprocess.run(argv, cwd=ROOT, env=self.env(), capture_output=True, text=True, timeout=300)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise PocketError(f"`{' '.join(argv)}`: {error}") from None
        if done.returncode:
            raise PocketError(f"`{' '.join(argv)}` failed: {' '.join(done.stderr.split())}")
        return done.stdout

    def jobs(self) -> list[str]:
        return self.ask("squeue", "--noheader", "--me", "--format=%i").split()


QUEUE = 7 * 86400.0
"""Seconds that a site's queue may take: who has not so long ends the drill by Ctrl-C."""


def patience(place: Place, seconds: float = PATIENCE) -> float:
    """How long to wait for what takes so many seconds where nobody waits for nodes."""
    return QUEUE if isinstance(place, Site) else seconds
