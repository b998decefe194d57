"""The trainer, killed by -9 in the middle of a save: `python -m tests.trainer.with_a_kill RANK COUNT CONFIG`.

Rank RANK dies right before the COUNT-th call that changes its checkpoints, counted from the start of its first save on.
What it writes beside (logs, records) isn't counted: how much of that falls into a save differs from run to run.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from typing import Any

_CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir")
_fsync = os.fsync


class Fuse:
    def __init__(self, count: int) -> None:
        self.left, self.lit = count, False

    def burn(self, call: str, path: str) -> None:
        self.left -= self.lit and "checkpoints" in path.split("/")
        if self.left == 0:
            print(f"killed before {call} {os.path.basename(path)}", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if writes or event in _CHANGES:
            path = os.path.abspath(str(arguments[0]))
            # A save begins with a new folder or file; what removes an old .tmp- at the start of an attempt is none.
            self.lit = self.lit or (bool(writes) or event == "os.mkdir") and ".tmp-" in path
            self.burn(event, path)

    def fsync(self, fd: int) -> None:
        self.burn("fsync", os.readlink(f"/proc/self/fd/{fd}"))
        _fsync(fd)


if __name__ == "__main__":
    rank, count, config = sys.argv[1:]
    if os.environ["RANK"] == rank:
        fuse = Fuse(int(count))
        sys.addaudithook(fuse.audit)
        os.fsync = fuse.fsync
    sys.argv[:] = ["trainer", config]
    runpy.run_module("trainer", run_name="__main__", alter_sys=True)
