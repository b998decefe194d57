"""The run folder: one logical training over many jobs. Who owns it is decided by its claims, never by clocks.

Standard library only: every rank's shim imports it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from durable import append_line, nonce, read_lines, write_atomic

_CHECKPOINT = re.compile(r"step-(\d{8})-e(\d{4,})")
_CLAIM = re.compile(r"(\d{4,})\.json")


@dataclass(frozen=True)
class Claim:
    """One start of the ranks: its number is the attempt and the epoch."""

    epoch: int
    job_id: str | None
    restart_count: int
    time: float
    resume_from: dict[str, int] | None = None
    """Step and epoch of the checkpoint that the trainer resumed from."""
    host: str | None = None
    pid: int | None = None
    """Of the supervisor."""


@dataclass(frozen=True)
class RunDir:
    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def script(self) -> Path:
        return self.path / "submission.sh"

    @property
    def logs(self) -> Path:
        """By this folder a job of the run is known in the queue, since its own log goes here."""
        return self.path / "logs"

    @property
    def stop_file(self) -> Path:
        """The user's word: the run saves at the next step and ends."""
        return self.path / "stop"

    @property
    def deadline_file(self) -> Path:
        return self.path / "deadline"

    @property
    def progress_file(self) -> Path:
        """Where a foreign command may write its step."""
        return self.path / "progress"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    # --- how it ended ---

    @property
    def done(self) -> bool:
        return (self.path / "DONE").exists()

    @property
    def cancelled(self) -> dict[str, Any] | None:
        """Why the run ended unfinished for good: {"cause": ..., "reason": ...}; `resume` lifts it."""
        try:
            return dict(json.loads((self.path / "CANCELLED").read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except ValueError:
            return {"cause": "cancel", "reason": "the file CANCELLED stands here"}

    @property
    def over(self) -> bool:
        return self.done or self.cancelled is not None

    def resumed_after(self) -> int:
        """The attempt after which the user last resumed the run; budgets count from there. 0: never."""
        try:
            return int((self.path / "resumed").read_text())
        except (FileNotFoundError, ValueError):
            return 0

    def lift_end(self) -> None:
        """Make a run that ended unfinished startable again."""
        write_atomic(self.path / "resumed", f"{self.newest_epoch()}\n")
        (self.path / "CANCELLED").unlink(missing_ok=True)
        self.stop_file.unlink(missing_ok=True)

    def write_done(self, reason: str) -> None:
        """For a foreign command; the trainer writes its own DONE."""
        write_atomic(self.path / "DONE", json.dumps({"reason": reason, "time": time.time()}) + "\n")

    def cancel(self, cause: str, reason: str, lines: Sequence[str] = ()) -> None:
        """`lines`: of a log, that tell more than the reason."""
        record = {"cause": cause, "reason": reason, "time": time.time(), "lines": list(lines)}
        write_atomic(self.path / "CANCELLED", json.dumps(record) + "\n")

    # --- who owns it ---

    @property
    def claims_dir(self) -> Path:
        return self.path / "claims"

    def claim(self, job_id: str | None, restart_count: int, after: int) -> Claim | None:
        """The attempt that follows `after`, ours alone; None: another starter has it, or a later one.

        O_EXCL lets one starter win a number, also over NFS and Lustre. Who lost must look anew at how things stand.
        """
        self.claims_dir.mkdir(exist_ok=True)
        if self.newest_epoch() != after:
            return None
        record = Claim(after + 1, job_id, restart_count, time.time(), host=os.uname().nodename, pid=os.getpid())
        try:
            fd = os.open(self.claims_dir / f"{record.epoch:04d}.json", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            return None
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            json.dump({**record.__dict__, "nonce": nonce()}, file)
            file.flush()
            os.fsync(file.fileno())
        return record

    def newest_epoch(self) -> int:
        return max((int(match[1]) for match in map(_CLAIM.fullmatch, _names(self.claims_dir)) if match), default=0)

    def read_claim(self, epoch: int) -> Claim | None:
        """None: there is none, or its writer died before the content was written."""
        try:
            data = json.loads((self.claims_dir / f"{epoch:04d}.json").read_text(encoding="utf-8"))
            return Claim(**{field.name: data.get(field.name) for field in dataclasses.fields(Claim)})
        except (FileNotFoundError, ValueError):
            return None

    def open_claim(self) -> Claim | None:
        """The newest attempt's claim as long as its end is not written."""
        claim = self.read_claim(self.newest_epoch())
        ended = claim is not None and any(record["attempt"] == claim.epoch for record in self.attempts())
        return None if ended else claim

    def supervisor_here(self) -> int | None:
        """Process id of the newest attempt's supervisor when it lives on this host."""
        claim = self.read_claim(self.newest_epoch())
        if claim is None or claim.pid is None or claim.host != os.uname().nodename:
            return None
        try:
            words = Path(f"/proc/{claim.pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            return None
        return claim.pid if b"slurm.supervisor" in words and os.fsencode(self.path) in words else None

    def stop_word(self, epoch: int) -> Path:
        """The supervisor's word to the ranks of one attempt, which no successor obeys."""
        return self.claims_dir / f"{epoch:04d}.stop"

    # --- what was reached ---

    def committed_step(self) -> int:
        """Step of the newest committed checkpoint; 0: none yet."""
        folder = self.path / "checkpoints"
        steps = (
            int(m[1])
            for m in map(_CHECKPOINT.fullmatch, _names(folder))
            if m and (folder / m[0] / "MANIFEST.json").exists()
        )
        return max(steps, default=0)

    def attempt_dir(self, epoch: int) -> Path:
        return self.logs / f"attempt-{epoch:04d}"

    def attempts(self) -> list[dict[str, Any]]:
        """Each attempt's end, in order."""
        return one_of_each(read_lines(self.path / "attempts.jsonl"))

    def record_attempt(self, record: dict[str, Any]) -> None:
        append_line(self.path / "attempts.jsonl", record, sync=True)

    def note_fallback(self, words: str | None) -> None:
        """What was done where the run could not go on in the way that was asked for, for `status`; None: it could."""
        if words is None:
            (self.path / "fallback").unlink(missing_ok=True)
        else:
            write_atomic(self.path / "fallback", words + "\n")

    def fallback(self) -> str | None:
        try:
            return (self.path / "fallback").read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return None

    # --- its jobs ---

    def jobs(self) -> list[dict[str, Any]]:
        """Jobs submitted for this run, oldest first: {"job": id, "after": predecessor's id or null}."""
        return read_lines(self.path / "jobs.jsonl")

    def record_job(self, job_id: str, after: str | None) -> None:
        """Once, whoever comes to know of it first."""
        if all(record["job"] != job_id for record in self.jobs()):
            append_line(self.path / "jobs.jsonl", {"job": job_id, "after": after, "time": time.time()}, sync=True)


def one_of_each(ends: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of two ends of an attempt the first counts: a lost node's supervisor may come back and write another."""
    first = {end["attempt"]: end for end in reversed(ends)}
    return [first[attempt] for attempt in sorted(first)]


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []
