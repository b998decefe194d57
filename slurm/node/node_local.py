"""What lies on a node's own disk, for this user alone. Standard library only: every rank's shim imports it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from durable import make_own
from slurm.environment import CACHES, OWN_DISK


def path_of(folder: str) -> Path:
    """This user's own in `folder`, as the node's variables make it (where they do not, in /tmp); for all runs."""
    root = os.path.expandvars(folder)
    return Path(OWN_DISK if "$" in root else root) / f"outlast-{os.getuid()}"


def caches(folder: str, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Of the variables of CACHES those that nobody has set; none where the disk takes no folder."""
    with suppress(OSError):
        make_own(ours := path_of(folder))
        return {name: str(ours / below) for name, below in CACHES.items() if name not in environ}
    return {}
