"""Runs that have saved once, for others to go on from."""

from __future__ import annotations

import time
from pathlib import Path

from benchmarks.processes import Unable
from benchmarks.step.race import Racer

EVERY = 5
"""Steps between saves: a run saves once and is left before it saves again."""


def save_once(racer: Racer, run_dir: Path) -> Path:
    """Run until a checkpoint stands; its folder. A save that goes on beside the steps may need some more of them."""
    with racer:
        racer.ready()
        racer.run(EVERY + 1)
        for _ in range(EVERY - 2):
            if found := sorted(run_dir.glob("checkpoints/step-*")):
                return found[-1]
            time.sleep(1)
            racer.run(1)
    raise Unable(f"{racer.name}: nothing was saved: see {racer.log}")
