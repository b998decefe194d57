"""The report of a run: one HTML file that needs no network, and no torch to write it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

LONGEST = 600.0  # seconds, then the run is done without it


def at_the_end(run_dir: Path, say: Callable[[str], Any]) -> None:
    """RUN_DIR/report.html, when all is saved and exported. By a process of its own: what goes wrong fails no run."""
    argv = [sys.executable, "-P", "-m", __name__, str(run_dir)]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent.parent)}
    try:
        made = subprocess.run(argv, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LONGEST)
        said = (made.stdout + made.stderr).strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        said = f"the report could not be written: {error}"
    say(said)
