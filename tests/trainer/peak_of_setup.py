"""One rank: set up as the trainer does, until it makes room for the copies that saves take. Tells how far its memory
grew at its peak, in bytes.

python -m tests.trainer.peak_of_setup RUN_DIR/config.yaml
"""

from __future__ import annotations

import ctypes
import re
import sys
from pathlib import Path
from typing import Any

from trainer import config, run
from trainer.attempt import Attempt
from trainer.checkpoint.saves import Saves
from trainer.runtime import start

M_MMAP_THRESHOLD = -3  # malloc.h


def peak() -> int:
    """Of this process since it was forked; ru_maxrss would begin with its parent's."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return 1024 * int(found[1])


def main(config_path: Path) -> None:
    # What is freed goes back at once: else the holes that malloc keeps count too.
    assert ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 16)
    settings = config.read(config_path)
    attempt = Attempt(settings, start(config_path.parent, longest_wait=60))
    before = peak()

    def saves(*given: Any) -> Saves:
        print(f"grew by {peak() - before}")
        return Saves(*given)

    run.Saves = saves  # type: ignore[misc, assignment]
    run.Training(settings, attempt).set_up()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
