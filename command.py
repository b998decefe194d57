"""The command `outlast` that a wheel installs: launch.py of the folder that the wheel has laid down.

A wheel holds the house as it stands here, in a folder `outlast` of its own, so that no `slurm` and no `trainer` of ours
lies beside a user's in site-packages.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

HOUSE = Path(__file__).parent


def main() -> None:
    sys.path.insert(0, str(HOUSE))
    runpy.run_path(str(HOUSE / "launch.py"), run_name="__main__")
