"""The trainer on a host whose clock is wrong: `python -m tests.trainer.with_another_clock RANK SECONDS WHEN CONFIG`.

The clock of rank RANK is SECONDS ahead, from the `start` on or, set by somebody, from the third step on (`later`).
"""

from __future__ import annotations

import os
import runpy
import sys
import time
from typing import Any

_time = time.time


def set_clock(seconds: float) -> None:
    time.time = lambda: _time() + seconds


def set_clock_later(seconds: float) -> None:
    from trainer.stop.lead import LeadTime

    saw_step = LeadTime.saw_step

    def saw(self: LeadTime, *args: Any) -> None:
        saw_step(self, *args)
        if len(self._steps) == 3:
            set_clock(seconds)

    LeadTime.saw_step = saw  # type: ignore[method-assign]


if __name__ == "__main__":
    rank, seconds, when, config = sys.argv[1:]
    if rank == os.environ["RANK"]:
        (set_clock if when == "start" else set_clock_later)(float(seconds))
    sys.argv[:] = ["trainer", config]
    runpy.run_module("trainer", run_name="__main__", alter_sys=True)
