"""Starts launch.py again and again, its imports done once, and kills it and its children after a while.

Reads lines of JSON: [words, file of its output, seconds or null]; answers with its exit code, negative for a signal.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from contextlib import suppress

import launch
import slurm.submit
import slurm.verbs
import trainer.recipe
from slurm.node.below import adopt_orphans

LATE = (slurm.submit, slurm.verbs, trainer.recipe)  # what a submission imports when it needs it


def main() -> int:
    adopt_orphans()
    for line in sys.stdin:
        words, output, seconds = json.loads(line)
        child = os.fork()
        if not child:
            os.setpgid(0, 0)
            file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, 1)
            os.dup2(file, 2)
            code = launch.main(words)
            sys.stdout.flush()
            os._exit(code)
        os.setpgid(child, child)  # also here: it may be killed before it has come so far
        print(code_of(child, seconds), flush=True)
    return 0


def code_of(child: int, seconds: float | None) -> int:
    end = None if seconds is None else time.monotonic() + seconds
    while end is not None and time.monotonic() < end:
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            break
        time.sleep(0.001)
    else:
        if end is not None:
            os.killpg(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with suppress(ChildProcessError):  # an sbatch that is killed lives a moment longer on a busy machine
        while True:
            os.waitpid(-child, 0)
    return code


if __name__ == "__main__":
    sys.exit(main())
