"""What became of the doctor's job."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from slurm.config import JobConfig
from slurm.rundir import RunDir

SIGNAL = "USR1"
"""That is sent to all ranks."""


@dataclass
class Exam:
    """What the ranks have told, and Slurm."""

    job: JobConfig
    run: RunDir
    reports: list[dict[str, Any]] = field(default_factory=list)
    """Of each rank that could write one; in the order of the ranks."""
    signalled: bool = False
    """A signal was sent to all ranks when all were there."""
    requeue_allowed: bool | None = None
    """By Slurm's own record of the job; None: not known, as in an allocation of the user's."""
    requeued: bool | None = None
    """It was requeued, and its ranks came again; None: nobody asked for that."""
    refused: str = ""
    """Slurm's words to the requeue."""
    record: dict[str, Any] = field(default_factory=dict)
    """The first attempt's end."""
    words: list[str] = field(default_factory=list)
    """Last lines of the logs, where not every rank has reported."""
