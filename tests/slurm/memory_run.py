"""A run folder without a disk, for histories of a simulated Slurm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from slurm.rundir import Claim, RunDir, one_of_each


@dataclass
class StopFile:
    memory: dict[str, Any]

    def exists(self) -> bool:
        return "stop" in self.memory

    def unlink(self, missing_ok: bool = False) -> None:
        self.memory.pop("stop", None)


def _fresh() -> dict[str, Any]:
    return {"claims": {}, "attempts": [], "jobs": [], "commits": [], "fallbacks": 0}


@dataclass(frozen=True)
class MemoryRun(RunDir):
    """A run folder without a disk; before and after every write its writer may die or stand still."""

    sim: Any = None
    memory: dict[str, Any] = field(default_factory=_fresh)

    @property
    def done(self) -> bool:
        return "done" in self.memory

    @property
    def cancelled(self) -> dict[str, Any] | None:
        return self.memory.get("cancelled")

    @property
    def stop_file(self) -> Any:
        return StopFile(self.memory)

    def resumed_after(self) -> int:
        return int(self.memory.get("resumed", 0))

    def write_done(self, reason: str) -> None:
        self._write(lambda: self.memory.update(done=reason))

    def cancel(self, cause: str, reason: str, lines: Any = ()) -> None:
        self._write(lambda: self.memory.update(cancelled={"cause": cause, "reason": reason}))

    def note_fallback(self, words: str | None) -> None:
        self.memory["fallbacks"] += words is not None

    def claim(self, job_id: str | None, restart_count: int, after: int, ranks: int | None = None) -> Claim | None:
        self.sim.moment()
        if self.newest_epoch() != after:
            return None
        self.sim.claimed(after + 1)
        record = self.memory["claims"][after + 1] = Claim(after + 1, job_id, restart_count, 0.0, ranks=ranks)
        self.sim.moment()
        return record  # type: ignore[no-any-return]

    def newest_epoch(self) -> int:
        return max(self.memory["claims"], default=0)

    def read_claim(self, epoch: int) -> Claim | None:
        return self.memory["claims"].get(epoch)  # type: ignore[no-any-return]

    def committed_step(self) -> int:
        return max((step for _, step in self.memory["commits"]), default=0)

    def attempts(self) -> list[dict[str, Any]]:
        return one_of_each(self.memory["attempts"])

    def record_attempt(self, record: dict[str, Any]) -> None:
        self._write(lambda: self.memory["attempts"].append(record))

    def jobs(self) -> list[dict[str, Any]]:
        return list(self.memory["jobs"])

    def record_job(self, job_id: str, after: str | None) -> None:
        if all(record["job"] != job_id for record in self.jobs()):
            self._write(lambda: self.memory["jobs"].append({"job": job_id, "after": after}))

    def _write(self, change: Callable[[], Any]) -> None:
        self.sim.moment()
        change()
        self.sim.moment()
