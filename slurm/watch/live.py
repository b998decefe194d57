"""The foreground's line of progress, rewritten in place; the ranks' lines about single steps give way to it."""

from __future__ import annotations

import re
import shutil
import sys
from typing import TextIO

from durable import read_tail
from slurm.rundir import RunDir
from slurm.watch.pace import pace_of
from slurm.watch.times import duration

_STEP = re.compile(r"step +\d+ of \d+ ")
_TAIL_BYTES = 1 << 14  # of events.jsonl: some ten steps
_BAR = 20  # columns
_CLEAR = "\r\033[K"


class Live:
    def __init__(self, run: RunDir, out: TextIO = sys.stdout) -> None:
        self._run, self._out = run, out
        self._shown = ""

    def emit(self, line: str) -> None:
        """A line of a log, above ours."""
        if not _STEP.match(line):
            self._write(f"{line}\n{self._shown}")

    def draw(self) -> None:
        """Ours anew, as far as something has happened."""
        columns = shutil.get_terminal_size().columns - 1
        if (line := progress_line(self._run)[:columns]) != self._shown:
            self._shown = line
            self._write(line)

    def close(self) -> None:
        if self._shown:
            self._out.write("\n")

    def _write(self, text: str) -> None:
        self._out.write(f"{_CLEAR}{text}")
        self._out.flush()


def progress_line(run: RunDir) -> str:
    """How far the newest attempt is, by its last steps; empty: it has done none."""
    claim = run.read_claim(run.newest_epoch())
    told, _ = read_tail(run.events, _TAIL_BYTES)
    steps = [event for event in told if event.get("event") == "step" and claim and event["epoch"] == claim.epoch]
    pace = pace_of(steps)
    if claim is None or pace is None:
        return ""
    total, loss = claim.total_steps or 0, steps[-1]["loss"]
    full = _BAR * pace.step // total if total else 0
    parts = [f"step {pace.step:,} of {total:,} [{'#' * full}{'.' * (_BAR - full)}]" if total else f"step {pace.step:,}"]
    parts += [f"loss {loss:.4f}"] if loss is not None else []
    parts += [f"{pace.tokens_per_second:,.0f} tokens/s"] if pace.tokens_per_second else []
    parts += [f"MFU {pace.mfu:.1%}"] if pace.mfu else []
    parts += [f"{pace.memory_bytes / 1e9:.1f} GB"] if pace.memory_bytes else []
    parts += [f"done in {duration((total - pace.step) * pace.seconds)}"] if total else []
    return "  ".join(parts)
