"""The trainer on a node that has no room for a copy of the state: `python -m tests.trainer.with_little_memory CONFIG`."""

from __future__ import annotations

import runpy
import sys

from trainer.checkpoint import staging

if __name__ == "__main__":
    staging.memory_left = lambda: 1000  # type: ignore[assignment]
    sys.argv[0] = "trainer"
    runpy.run_module("trainer", run_name="__main__", alter_sys=True)
