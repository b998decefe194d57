"""The trainer of a run whose nodes are thought to be lost every ten seconds:

python -m tests.trainer.with_a_prior CONFIG
"""

from __future__ import annotations

import runpy
import sys

if __name__ == "__main__":
    from trainer.checkpoint import interval

    interval.PRIOR = 10.0
    sys.argv[0] = "trainer"
    runpy.run_module("trainer", run_name="__main__", alter_sys=True)
