"""How one run stands: all that is told of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class RunStatus:
    """What `status` has found of one run."""

    name: str
    state: str
    """done, running, waiting, ended, interrupted."""
    why: str
    do: str
    """What its user can do about it; empty: nothing needs to be done."""
    step: int
    """Last step that any attempt reported."""
    total_steps: int | None
    committed_step: int
    loss: float | None
    seconds_per_step: float | None
    tokens_per_second: float | None
    mfu: float | None
    memory_bytes: float | None
    ends: float | None
    """Unix seconds at which the last step may be done."""
    jobs_to_come: int
    waits_known: bool
    """`ends` has the waits in the queue in it, as they were so far."""
    goodput: float | None
    gpu_hours: float
    gpu_hours_expected: float | None
    """Of the whole run."""
    running_since: float | None
    """Unix seconds at which the attempt started that runs."""
    next_start: float | None
    """Unix seconds at which Slurm expects to start the job that waits."""
    attempts: list[dict[str, Any]]
    jobs: dict[str, str]
    """Jobs in the queue now: id -> state and reason."""
    folder: str
    sweep: str | None
    """Folder of the sweep that it is one of."""
    expires: str | None
    notes: list[str]
    """What its user should know beside the state."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)
