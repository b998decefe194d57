"""Where pockets lie: a small module, since every command line looks for one."""

import os
from pathlib import Path

SYSTEM_ROOT = Path("/run/outlast-pocket")
RECORD = "pocket.json"


def roots() -> list[Path]:
    """Folders of pockets; one's own comes first."""
    if chosen := os.environ.get("OUTLAST_POCKET_DIR"):
        return [Path(chosen).resolve()]
    if os.getuid() == 0:
        return [SYSTEM_ROOT]
    return [Path(f"/tmp/outlast-pocket-{os.getuid()}"), SYSTEM_ROOT]


def stands(name: str = "pocket") -> bool:
    """Whether there is a record of such a pocket; whether it runs, `find` tells."""
    return any(trusted(root) and trusted(root / name) and (root / name / RECORD).exists() for root in roots())


def trusted(folder: Path) -> bool:
    """Whether nobody but this user or root made it: /tmp is everybody's, and what a pocket's slurm.conf names is loaded
    by Slurm's commands."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    return found.st_uid in (0, os.getuid()) and not folder.is_symlink()
