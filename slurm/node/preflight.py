"""Whether a node is fit for ranks: its first shim looks before it starts them.

What is certain ends the attempt there, so that the next job keeps away from the node. What is only odd, and a look that
cannot be taken, is a note in the job's log: no healthy run may fail by this. Standard library only: every rank's shim
imports it.
"""

from __future__ import annotations

import errno
import os
import re
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from slurm.environment import Task
from slurm.step import Step

SECONDS = 10.0  # for the driver's answer, which a sick GPU may keep back for ever
SKEW = 60.0
"""Seconds between two clocks that a slow start of the step does not explain."""
_KFD = Path("/sys/class/kfd/kfd/topology/nodes")
_LOST = re.compile(r"GPU is lost|fallen off the bus|Unable to determine the device handle", re.IGNORECASE)
_FULL = (errno.ENOSPC, errno.EDQUOT)  # no node is better then


@dataclass(frozen=True)
class Look:
    unfit: str | None
    """Why no rank can run on this node; None: nothing is known against it."""
    notes: list[str]


def is_due(step: Step, task: Task) -> bool:
    """For the first shim of each node; an agent's workers come after one that has looked."""
    return task.local_rank == 0 and step.launcher != "worker"


def look(step: Step, task: Task) -> Look:
    unfit, notes = None, []
    for check in (_folder(step, task), _gpus(task), _memory(task), _clock(step)):
        if check is not None and check.certain:
            unfit = unfit or check.text
        elif check is not None:
            notes.append(check.text)
    return Look(unfit, notes)


@dataclass(frozen=True)
class _Finding:
    text: str
    certain: bool = False


def _folder(step: Step, task: Task) -> _Finding | None:
    """The run's folder takes a file from here."""
    file = step.logs / f".fit-{task.node_rank:04d}"
    try:
        with open(file, "wb") as out:
            out.write(b"\0" * 4096)
            out.flush()
            os.fsync(out.fileno())
        file.unlink()
    except OSError as error:
        with suppress(OSError):
            file.unlink(missing_ok=True)
        said = f"{step.run_dir} takes no file here: {error.strerror}"
        return _Finding(said, certain=error.errno not in _FULL)
    return None


def _gpus(task: Task) -> _Finding | None:
    """As many GPUs answer as Slurm has given to this task."""
    if not task.gpus:
        return None
    try:
        seen = _nvidia() if not _KFD.is_dir() else _amd()
    except FileNotFoundError:
        return None  # no driver's tool is here: a container, or GPUs that are none
    except subprocess.TimeoutExpired:
        return _Finding(f"nvidia-smi has not answered within {SECONDS:.0f} s")
    except (OSError, LookupError) as error:
        return _Finding(str(error))
    if seen < task.gpus:
        return _Finding(f"{seen} of its {task.gpus} GPUs answer", certain=True)
    return None


def _nvidia() -> int:
    """GPUs, or parts of one, that the driver lists. Raises LookupError with its words where it does not."""
    done = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=SECONDS)
    seen = len(re.findall(r"UUID: (?:GPU|MIG)-", done.stdout))
    words = f"{done.stdout}\n{done.stderr}"
    if done.returncode and not _LOST.search(words):
        raise LookupError(f"nvidia-smi: exit {done.returncode}: {' '.join(words.split())[:200]}")
    return seen


def _amd() -> int:
    ids = [int((node / "gpu_id").read_text()) for node in _KFD.iterdir()]
    return sum(1 for found in ids if found)  # 0: a CPU


def _memory(task: Task) -> _Finding | None:
    """What Slurm has promised of the node's memory is there."""
    with suppress(OSError):
        found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
        if found and task.memory_mb and int(found[1]) // 1024 < task.memory_mb:
            has = f"{int(found[1]) / 1e6:.1f} GB of memory are free"
            return _Finding(f"{has}, Slurm has given {task.memory_mb / 1024:.1f} GiB: see what others left in /dev/shm")
    return None


def _clock(step: Step) -> _Finding | None:
    """By it the ranks keep the deadline."""
    ahead = time.time() - step.started
    if step.started and abs(ahead) > SKEW:
        return _Finding(f"its clock is {ahead:+.0f} s from the batch host's, or the step took so long to start")
    return None
