"""The trainer on a disk that is full from rank 0's first save on, until that has failed:
`python -m tests.trainer.with_a_full_disk CONFIG`."""

from __future__ import annotations

import itertools
import os
import runpy
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from trainer.checkpoint.save import Saver


def fill(path: Path) -> None:
    with open(path, "wb", buffering=0) as file, suppress(OSError):
        for size in itertools.chain([1 << 20] * 1000, [4096] * 1000, [1] * 4096):
            with suppress(OSError):
                file.write(bytes(size))


def arm(filler: Path) -> None:
    begin, finish = Saver.begin, Saver.finish

    def with_fault(self: Saver, *args: Any) -> None:
        if not filler.exists():
            fill(filler)
        begin(self, *args)

    def without(self: Saver) -> Any:
        try:
            return finish(self)
        finally:
            filler.write_bytes(b"")

    Saver.begin, Saver.finish = with_fault, without  # type: ignore[method-assign]


if __name__ == "__main__":
    if os.environ["RANK"] == "0":
        arm(Path(sys.argv[1]).parent / "filler")
    sys.argv[0] = "trainer"
    runpy.run_module("trainer", run_name="__main__", alter_sys=True)
