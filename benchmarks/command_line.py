"""How long a person waits for the command line, against what it is built from."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RUNS = 11
BARE = "bare python"

COMMANDS = {
    BARE: ["-c", "pass"],
    "import submitit": ["-c", "import submitit"],
    "launch.py --help": ["launch.py", "--help"],
    "launch.py --dry-run": [
        "launch.py",
        "--cluster",
        "generic",
        "--nodes",
        "2",
        "--gpus",
        "8",
        "--dry-run",
        "recipes/demo.yaml",
    ],
}


def measure() -> list[dict[str, Any]]:
    """Median seconds of each command, run in turn, and their ratio to a bare interpreter."""
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    env = {**os.environ, "SLURM_CONF": "/nonexistent"}  # no Slurm: what a laptop sees, on every machine the same
    for _ in range(RUNS):
        for name, words in COMMANDS.items():
            began = time.perf_counter()
            subprocess.run([sys.executable, *words], cwd=ROOT, env=env, stdout=subprocess.DEVNULL, check=True)
            times[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return [
        {"name": name, "seconds": round(value, 4), "peer": BARE, "ratio": round(value / medians[BARE], 2)}
        for name, value in medians.items()
    ]
