"""Which rank of an attempt failed first, what it raised, and what that means."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from slurm.causes.known_errors import Known, exception_of, explain
from slurm.exits import AGREED
from slurm.rundir import RunDir
from slurm.step import read_exits

_TAIL_BYTES = 1 << 18  # of a log: stacks of C++ come after the words
_KILLED = (signal.SIGKILL, signal.SIGTERM)
"""By these a rank dies when another has crashed."""
_TASK_ENDED = re.compile(r"srun: error: \S+: tasks? ")
_CANCELLED = re.compile(r"(STEP|JOB) \S+ ON \S+ CANCELLED.*")


def rank_log(run: RunDir, epoch: int, rank: int) -> Path:
    return run.attempt_dir(epoch) / f"rank-{rank:04d}.log"


def job_log(run: RunDir, job_id: str | None) -> Path:
    """The supervisor's and srun's words."""
    return run.logs / f"job-{job_id or 'here'}.log"


def whose(log: Path) -> str:
    """What stands before a line of this log where there are several: `   5| `."""
    name = log.stem.removeprefix("rank-")
    return f"{int(name) if name.isdigit() else 'job':>4}| "


def tail(path: Path) -> list[str]:
    """The last lines of a log; none where there is no log."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
            return file.read(_TAIL_BYTES).decode(errors="replace").splitlines()
    except FileNotFoundError:
        return []


@dataclass(frozen=True)
class Failure:
    """How one rank ended."""

    rank: int
    end: Mapping[str, Any]
    """Its exit record; empty: it left none."""
    exception: str | None
    known: Known | None

    @property
    def words(self) -> str:
        """`rank 5 on n3: signal 9`."""
        host = f" on {self.end['host']}" if self.end.get("host") else ""
        if not self.end:
            return f"rank {self.rank}{host}: no exit record"
        how = f"signal {self.end['signal']}" if self.end.get("signal") else f"exit {self.end.get('code')}"
        return f"rank {self.rank}{host}: {how}"


def failed(run: RunDir, epoch: int) -> dict[int, dict[str, Any]]:
    """The ranks of an attempt that did not end as agreed, with their exit records."""
    ends = read_exits(run.attempt_dir(epoch))
    return {rank: end for rank, end in ends.items() if end.get("code") not in AGREED}


def first_failure(run: RunDir, epoch: int) -> int | None:
    """The rank that failed first in an attempt; None: none has, also where all were ended alike from outside.

    Hosts' clocks differ, so what a rank died of comes before when: one that was asked to end, that was killed, or that
    has lost another is not where one should look as long as there are others. One without a record went before those.
    """
    if ended_from_outside(run, epoch) is not None:
        return None
    crashed = failed(run, epoch)
    suspects = [rank for rank, end in crashed.items() if not end.get("asked")]
    killed = [rank for rank in suspects if crashed[rank].get("signal") in _KILLED]
    lost = _without_record(run, epoch)[:1] if crashed else []
    rest = suspects if len(suspects) == len(crashed) else []
    found = _by_themselves(run, epoch) or lost or killed or rest
    return min(found, key=lambda rank: crashed.get(rank, {}).get("time", 0.0), default=None)


def ended_from_outside(run: RunDir, epoch: int) -> str | None:
    """Slurm's word on a step that it has ended though no rank had failed; None: it has not.

    A scancel of the step kills the ranks together with their shims, which leave no record then.
    """
    ends, crashed = read_exits(run.attempt_dir(epoch)), failed(run, epoch)
    if (ends and not crashed) or _by_themselves(run, epoch):
        return None
    alike = not ends or (all(end.get("asked") for end in crashed.values()) and not _without_record(run, epoch))
    words = _slurms_words(run, epoch)
    found = (_CANCELLED.search(line) for line in (words if alike else _before_any_end(words)))
    return next((match[0].strip(" *") for match in found if match), None)


def _by_themselves(run: RunDir, epoch: int) -> list[int]:
    """Ranks that failed, and by nobody else's doing."""
    crashed = failed(run, epoch)
    own = [rank for rank, end in crashed.items() if end.get("signal") not in _KILLED or end.get("oom")]
    own = [rank for rank in own if not crashed[rank].get("asked")]
    alone = len(own) == 1 == len(crashed)  # whatever it says
    return own if alone else [rank for rank in own if not _echoes(run, epoch, rank, crashed[rank])]


def _before_any_end(words: list[str]) -> list[str]:
    """What Slurm says after a task's end only follows from that."""
    return list(takewhile(lambda line: not _TASK_ENDED.match(line), words))


def _without_record(run: RunDir, epoch: int) -> list[int]:
    claim, ends = run.read_claim(epoch), read_exits(run.attempt_dir(epoch))
    return [rank for rank in range(claim.ranks or 0) if rank not in ends] if claim is not None else []


def _echoes(run: RunDir, epoch: int, rank: int, end: Mapping[str, Any]) -> bool:
    known = explain(tail(rank_log(run, epoch, rank)), end)
    return known is not None and known.echo


def failure(run: RunDir, epoch: int, rank: int) -> Failure:
    """What is known of a rank's end."""
    end = read_exits(run.attempt_dir(epoch)).get(rank, {})
    lines = tail(rank_log(run, epoch, rank))
    known = None
    if ended_from_outside(run, epoch) is not None:
        known = explain(_slurms_words(run, epoch), {})
    elif end and end.get("code") not in AGREED:
        spoken = _before_any_end(_slurms_words(run, epoch)) if end.get("signal") in _KILLED else []
        known = explain([*lines, *spoken], end)
    return Failure(rank, end, exception_of(lines), known)


def _slurms_words(run: RunDir, epoch: int) -> list[str]:
    """What Slurm has said of an attempt's end, in its job's log."""
    claim = run.read_claim(epoch)
    lines = tail(job_log(run, claim.job_id)) if claim is not None else []
    begins = [number for number, line in enumerate(lines) if re.search(rf"outlast: attempt {epoch} starts", line)]
    own = takewhile(lambda line: "outlast: attempt " not in line, lines[begins[-1] + 1 :] if begins else ())
    return [line for line in own if line.startswith(("slurmstepd", "srun: "))]
