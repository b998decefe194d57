"""`python -m tests.trainer.evaluate.with_a_kill COUNT ARGS`: trainer.evaluate, killed by -9 in the middle of writing its
COUNT-th batch of answers."""

from __future__ import annotations

import itertools
import json
import os
import runpy
import signal
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import durable
from trainer.evaluate import folder

_calls = itertools.count(1)


def torn(path: Path, records: Iterable[Mapping[str, Any]], sync: bool = False) -> None:
    records = list(records)
    if next(_calls) < int(count):
        durable.append_lines(path, records, sync)
        return
    text = "".join(json.dumps(record) + "\n" for record in records)
    with open(path, "a") as file:
        file.write(text[: len(text) // 2])
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    count, *args = sys.argv[1:]
    folder.append_lines = torn  # type: ignore[attr-defined]
    sys.argv[:] = ["trainer.evaluate", *args]
    runpy.run_module("trainer.evaluate", run_name="__main__", alter_sys=True)
