"""The trainer, asked to stop after exactly so many steps: `python -m tests.trainer.with_a_stop STEP CONFIG`.

The vote that is cast along with a step is heard after it. No evaluation is due one step before it.
"""

from __future__ import annotations

import itertools
import os
import runpy
import signal
import sys
from typing import Any

from trainer.run import Training

if __name__ == "__main__":
    last, config = sys.argv[1:]
    cast, calls = Training.cast, itertools.count()

    def with_a_stop(self: Training, *args: Any, **kwargs: Any) -> Any:
        if next(calls) and self.progress.step == int(last) - 1:  # the first vote is cast before the first step
            os.kill(os.getpid(), signal.SIGUSR1)
        return cast(self, *args, **kwargs)

    Training.cast = with_a_stop  # type: ignore[method-assign]
    sys.argv[:] = ["trainer", config]
    runpy.run_module("trainer", run_name="__main__", alter_sys=True)
