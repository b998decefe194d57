"""Where a part runs and how long it may: its device, its clock, its memory; on the CPU in a reduced form."""

from __future__ import annotations

import gc
import re
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import median

import torch

from benchmarks.gpu.child import reason
from benchmarks.gpu.figures import Figure
from trainer.runtime import Runtime, start

Work = Callable[[], object]


@dataclass(frozen=True)
class Place:
    reduced: bool
    """No GPU: tiny shapes and few steps, for the script's own sake."""
    until: float
    """By `time.monotonic`: what is not begun by then is left out."""
    folder: Path
    """Of all parts of one run: what one leaves there another may use."""
    tell: Callable[[Figure], None]
    attention: str = "auto"
    """trainer.shape.Model.attention"""
    copy_rate: float | None = None
    """Bytes a second, read and written, that a copy on the device has reached."""

    @property
    def runtime(self) -> Runtime:
        """A process group of one rank, and a run folder of its own; begun where it is first asked for."""
        return _runtime(self.folder)

    @property
    def device(self) -> torch.device:
        return self.runtime.device

    @property
    def memory(self) -> int:
        """Bytes of the device."""
        return torch.cuda.get_device_properties(self.device).total_memory if not self.reduced else 1 << 62

    def left(self) -> float:
        return self.until - time.monotonic()

    def within(self, seconds: float) -> Place:
        """The same place with less time."""
        return replace(self, until=min(self.until, time.monotonic() + seconds))

    # --- time ---

    def finish(self) -> None:
        """What was begun on the device is done."""
        if not self.reduced:
            torch.cuda.synchronize()

    def seconds(self, work: Work) -> float:
        self.finish()
        began = time.perf_counter()
        work()
        self.finish()
        return time.perf_counter() - began

    def paced(self, work: Work, warm: int = 10, most: int = 30) -> list[float]:
        """Seconds of each step: at least one, after at least one that warms up."""
        warm, most = (1, 2) if self.reduced else (warm, most)
        quarter = time.monotonic() + self.left() / 4
        self.seconds(work)
        while (warm := warm - 1) > 0 and time.monotonic() < quarter:
            self.seconds(work)
        taken = [self.seconds(work)]
        while len(taken) < most and taken[-1] < self.left():
            taken.append(self.seconds(work))
        return taken

    def in_turn(self, works: Mapping[str, Work], most: int = 30) -> tuple[dict[str, float], dict[str, str]]:
        """Median seconds of each, A/B/A/B after one turn that warms up; and why what failed did."""
        taken: dict[str, list[float]] = {name: [] for name in works}
        failed: dict[str, str] = {}
        for turn in range(1 + (2 if self.reduced else most)):
            for name, work in works.items():
                if name in failed or turn > 1 and self.left() < taken[name][-1]:
                    continue
                try:
                    spent = self.seconds(work)
                except Exception as error:
                    failed[name] = reason(error)
                else:
                    taken[name] += [spent] if turn else []
                if name in failed:
                    self.free()
        return {name: median(spent) for name, spent in taken.items() if name not in failed}, failed

    # --- memory ---

    def free(self) -> None:
        gc.collect()
        if not self.reduced:
            torch.cuda.empty_cache()

    def peak(self, work: Work) -> int:
        """Bytes that it takes at most, above what stands before. On the CPU what is resident is counted."""
        self.free()
        if self.reduced:
            Path("/proc/self/clear_refs").write_text("5")  # the high water mark begins anew
            before = _resident("VmHWM")
            work()
            return _resident("VmHWM") - before
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        self.finish()
        return torch.cuda.max_memory_allocated() - before


@cache
def _runtime(folder: Path) -> Runtime:
    return start(Path(tempfile.mkdtemp(prefix="run-", dir=folder)), 3600.0)


def _resident(what: str) -> int:
    found = re.search(rf"{what}:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024
