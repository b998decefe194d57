"""The run folder: one logical training over many jobs. Who owns it is decided by its claims, never by clocks.

Standard library only: every rank's shim imports it.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Sequence
from contextlib import suppress
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
    ranks: int | None = None
    """That are started."""
    events_start: int = 0
    """Bytes that events.jsonl had: what this attempt tells stands behind them."""
    total_steps: int | None = None
    """Of the whole run, in the trainer's words."""

    @property
    def starter(self) -> str | None:
        """Two attempts of the same one are in the same allocation."""
        return None if self.pid is None else f"{self.host}:{self.pid}"


@dataclass(frozen=True)
class RunDir:
    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def own(self) -> bool:
        """What another user's run names, a program or a job, is not to be started or ended as ours."""
        with suppress(OSError):  # it has gone
            return self.path.stat().st_uid == os.getuid()
        return False

    @property
    def script(self) -> Path:
        return self.path / "submission.sh"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    def log_folders(self) -> set[str]:
        """By the folder of its log a job of the run is known in the queue."""
        sweep, task = self.sweep, self.task
        return {str(self.logs), *([] if sweep is None or task is None else [sweep.log_folder(task)])}

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

    # --- its place in a sweep ---

    @property
    def task(self) -> int | None:
        """Its number in the arrays of its sweep; None: it is in none."""
        try:
            return int((self.path / "task").read_text())
        except (FileNotFoundError, ValueError):
            return None

    @property
    def sweep(self) -> Sweep | None:
        return Sweep(self.path.parent) if self.task is not None else None

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

    def claim(self, job_id: str | None, restart_count: int, after: int, ranks: int | None = None) -> Claim | None:
        """The attempt that follows `after`, ours alone; None: another starter has it, or a later one.

        O_EXCL lets one starter win a number, also over NFS and Lustre. Who lost must look anew at how things stand.
        """
        self.claims_dir.mkdir(exist_ok=True)
        if self.newest_epoch() != after:
            return None
        host, told = os.uname().nodename, _size(self.events)
        record = Claim(
            after + 1, job_id, restart_count, time.time(), host=host, pid=os.getpid(), ranks=ranks, events_start=told
        )
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
            data = json.loads((self.claims_dir / f"{epoch:04d}.json").read_bytes())
            return Claim(**{name: data[name] for name in Claim.__match_args__ if name in data})
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def open_claim(self) -> Claim | None:
        """The newest attempt's claim as long as its end is not written."""
        claim = self.read_claim(self.newest_epoch())
        ended = claim is not None and any(record["attempt"] == claim.epoch for record in self.attempts())
        return None if ended else claim

    def supervisor_here(self) -> int | None:
        """Process id of the newest attempt's supervisor when it lives on this host."""
        return self.supervisor_of(self.read_claim(self.newest_epoch()))

    def supervisor_of(self, claim: Claim | None) -> int | None:
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
        newest = self.newest_checkpoint()
        match = _CHECKPOINT.fullmatch(newest.name) if newest else None
        return int(match[1]) if match else 0

    def newest_checkpoint(self) -> Path | None:
        """Of the highest committed step."""
        folder = self.path / "checkpoints"
        names = sorted(filter(_CHECKPOINT.fullmatch, _names(folder)), reverse=True)
        return next((folder / name for name in names if (folder / name / "MANIFEST.json").exists()), None)

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
        """Jobs submitted for this run, oldest first: {"job": id, "after": predecessor's id or null}. Of an array of its
        sweep one is its own: 812_3."""
        task, own = self.task, read_lines(self.path / "jobs.jsonl")
        if task is None:
            return own
        arrays = [array for array in Sweep(self.path.parent).jobs() if task in array["tasks"]]
        return sorted([*({**array, "job": f"{array['job']}_{task}"} for array in arrays), *own], key=_time)

    def record_job(self, job_id: str, after: str | None) -> None:
        """Once, whoever comes to know of it first."""
        if all(record["job"] != job_id for record in self.jobs()):
            append_line(self.path / "jobs.jsonl", {"job": job_id, "after": after, "time": time.time()}, sync=True)


@dataclass(frozen=True)
class Sweep(RunDir):
    """Runs of one recipe that differ in some settings. Their folders lie in this one, each is a task of its arrays."""

    @property
    def file(self) -> Path:
        return self.path / "sweep.json"

    def entries(self) -> list[dict[str, Any]]:
        """Its runs in the order in which they came: {"run": name, "task": number, "values": {dotted key: value}}."""
        return list(self._read()["runs"])

    @property
    def runs(self) -> list[RunDir]:
        """Those that are there: a call that was cut short may have noted more."""
        names = (Path(entry["run"]).name for entry in self.entries())  # none lies outside, whatever it says
        runs = (RunDir(self.path / name) for name in names)
        return [run for run in runs if (run.path / "job.yaml").exists()]

    def sent(self) -> list[int]:
        """Tasks of the array that is, or was, sent last."""
        return list(self._read()["sent"])

    def write(self, entries: list[dict[str, Any]], sent: list[int]) -> None:
        write_atomic(self.file, json.dumps({"sent": sent, "runs": entries}, indent=1) + "\n")

    def _read(self) -> dict[str, Any]:
        return dict(json.loads(self.file.read_text(encoding="utf-8")))

    def link(self, task: int) -> Path:
        """Leads to the run of a task: one array's script serves all."""
        return self.path / "tasks" / str(task)

    def log_folder(self, task: int) -> str:
        """Where the job of a task logs, as the array's script calls it."""
        return str(self.link(task) / "logs")

    def log_folders(self) -> set[str]:
        return {self.log_folder(task) for task in self.sent()}

    def jobs(self) -> list[dict[str, Any]]:
        """Its arrays, oldest first."""
        return read_lines(self.path / "jobs.jsonl")

    def record_job(self, job_id: str, after: str | None) -> None:
        record = {"job": job_id, "after": after, "time": time.time(), "tasks": self.sent()}
        append_line(self.path / "jobs.jsonl", record, sync=True)


def _time(record: dict[str, Any]) -> float:
    return float(record["time"])


def one_of_each(ends: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of two ends of an attempt the first counts: a lost node's supervisor may come back and write another."""
    first = {end["attempt"]: end for end in reversed(ends)}
    return [first[attempt] for attempt in sorted(first)]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []
