"""The GPU's clock and power while a part runs, by nvidia-smi; where there is none: nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from statistics import mean, median
from types import TracebackType
from typing import IO

# nvidia-smi's own loop may hold its lines back; this one ends with whoever began it.
_LOOP = 'while kill -0 "$PPID" 2>/dev/null; do "$@"; sleep 0.5; done'


class Clocks:
    """A line every half second, written beside all parts."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: IO[str] | None = None

    def __enter__(self) -> Clocks:
        if smi := shutil.which("nvidia-smi"):
            asked = ["--query-gpu=clocks.sm,power.draw", "--format=csv,noheader,nounits", f"--id={visible()}"]
            with open(self._file, "wb") as out:
                argv = ["sh", "-c", _LOOP, "sh", smi, *asked]
                self._process = subprocess.Popen(argv, stdout=out, stderr=subprocess.DEVNULL)
            self._reader = open(self._file)  # noqa: SIM115  closed in __exit__
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._process is not None and self._reader is not None:
            self._process.terminate()
            self._process.wait()
            self._reader.close()

    def read(self) -> dict[str, float]:
        """Since the last reading: `sm_mhz`, `watts`."""
        lines = self._reader.readlines() if self._reader else []
        values = [found for line in lines if (found := _numbers(line))]
        if not values:
            return {}
        return {"sm_mhz": median(clock for clock, _ in values), "watts": round(mean(power for _, power in values), 1)}


def _numbers(line: str) -> tuple[float, float] | None:
    """None of a line that is cut or says [N/A]."""
    try:
        clock, power = line.split(",")
        return float(clock), float(power)
    except ValueError:
        return None


def visible() -> str:
    """The one GPU that all parts use, as CUDA_VISIBLE_DEVICES and nvidia-smi name it."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0] or "0"


def devices() -> dict[str, str]:
    """What nvidia-smi says of that GPU."""
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return {}
    asked = ["name", "memory.total", "driver_version", "power.limit", "clocks.max.sm"]
    argv = [smi, f"--id={visible()}", f"--query-gpu={','.join(asked)}", "--format=csv,noheader"]
    said = subprocess.run(argv, capture_output=True, text=True)
    return dict(zip(asked, said.stdout.strip().split(", "), strict=False)) if said.returncode == 0 else {}
