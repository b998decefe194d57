"""What the folder of a run tells: its attempts, how it stands, its settings. Read only."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from durable import read_lines
from settings import ConfigError, read_yaml
from trainer import claims
from trainer.records import events, history
from trainer.records.history import History

RUNNING = "running"
"""The cause of an attempt that has no end yet, as far as its folder tells."""
SILENT = 900.0  # seconds without a word, from which on a run may have been cut off


@dataclass(frozen=True)
class Attempt:
    """One start of the ranks. Times are unix seconds."""

    number: int
    start: float
    end: float
    """Of one that has no end yet: its last word."""
    cause: str
    reason: str
    job: str
    starter: tuple[Any, ...]
    """What started the ranks: two attempts of the same one are in the same allocation."""
    ranks: int
    nodes: int
    device: str
    hosts: tuple[str, ...]
    first_step: int
    last_step: int
    """The last one that was told."""
    committed: int | None
    """The last step that was saved at its end, where a supervisor has written that down."""

    @property
    def seconds(self) -> float:
        return self.end - self.start


@dataclass(frozen=True)
class Run:
    path: Path
    history: History
    config: str
    """The text of its config.yaml; empty: a command of the user's own."""
    job: Mapping[str, Any]
    attempts: list[Attempt]
    submitted: float | None
    """When its first job was sent."""
    done: Mapping[str, Any] | None
    cancelled: Mapping[str, Any] | None
    total: int | None
    """Steps that it is to have, where it is known."""
    now: float

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def step(self) -> int:
        """The last one that counts."""
        kept = self.history.kept()
        return int(self.history.whole("step")[kept].max()) if kept.any() else 0

    @property
    def done_again(self) -> int:
        """Steps whose work an interruption has thrown away."""
        return int((~self.history.kept()).sum())

    @property
    def on_gpu(self) -> bool:
        return any(attempt.device != "cpu" for attempt in self.attempts)

    @property
    def silent(self) -> bool:
        """Its newest attempt has no end, and has said nothing for long."""
        newest = self.attempts[-1] if self.attempts else None
        return newest is not None and newest.cause == RUNNING and self.now - newest.end > SILENT


def read(run_dir: Path) -> Run:
    """Raises ConfigError when this is no run."""
    if not run_dir.is_dir():
        raise ConfigError(f"{run_dir}: there is no such run")
    told = history.read(run_dir) if (run_dir / events.NAME).is_file() else History()
    config = run_dir / "config.yaml"
    job = read_yaml(run_dir / "job.yaml") if (run_dir / "job.yaml").is_file() else {}
    attempts = _attempts(run_dir, told, job)
    if not attempts:
        raise ConfigError(f"{run_dir}: no attempt has started there yet: nothing to report")
    jobs, done = read_lines(run_dir / "jobs.jsonl"), _json(run_dir / "DONE")
    sent = float(jobs[0]["time"]) if jobs and "time" in jobs[0] else None
    ended = told.told("done")  # the trainer writes the report before DONE
    done = done or (ended[-1] if ended and ended[-1].get("epoch") == attempts[-1].number else None)
    return Run(
        path=run_dir,
        history=told,
        config=config.read_text(encoding="utf-8", errors="replace") if config.is_file() else "",
        job=job,
        attempts=attempts,
        submitted=min(sent, attempts[0].start) if sent else None,
        done=done,
        cancelled=None if done else _json(run_dir / "CANCELLED"),
        total=_total(told, done),
        now=time.time(),
    )


def _json(path: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}


def _total(told: History, done: Mapping[str, Any] | None) -> int | None:
    if done and "step" in done:
        return int(done["step"])
    of = [event["of"] for event in told.told("resume") if "of" in event]
    return int(of[-1]) if of else None


def _attempts(run_dir: Path, told: History, job: Mapping[str, Any]) -> list[Attempt]:
    """In order. The first of two ends counts, as for whoever decided by it."""
    ends = {end["attempt"]: end for end in reversed(read_lines(run_dir / "attempts.jsonl"))}
    said: dict[int, list[dict[str, Any]]] = {}
    for event in told.others:
        said.setdefault(int(event.get("epoch", 0)), []).append(event)
    last_times, last_steps = _newest(told, "time"), _newest(told, "step")
    found = []
    for number in claims.epochs(run_dir):
        claim, own = claims.read(run_dir, number), said.get(number, [])
        times = [float(event["time"]) for event in own if "time" in event] + [last_times.get(number, 0.0)]
        found.append(_attempt(number, claim, ends.get(number, {}), own, max(times), job, last_steps))
    return (
        [
            _before(one, later.start) if one.end > later.start and one.cause == RUNNING else one
            for one, later in zip(found, [*found[1:], found[-1]], strict=True)
        ]
        if found
        else []
    )


def _attempt(
    number: int,
    claim: Mapping[str, Any],
    end: Mapping[str, Any],
    said: list[dict[str, Any]],
    last_word: float,
    job: Mapping[str, Any],
    last_steps: Mapping[int, float],
) -> Attempt:
    resumed: dict[str, Any] = next((event for event in said if event["event"] == "resume"), {})
    kinds = {event["event"] for event in said}
    start = float(end.get("start") or claim.get("time") or min((e["time"] for e in said if "time" in e), default=0.0))
    start = start if start else last_word
    first = int(resumed.get("step", end.get("first_step", 0)))
    ranks = int(resumed.get("world_size") or job.get("nodes", 1) * (job.get("gpus_per_node") or 1))
    job_id = end.get("job_id", claim.get("job_id"))
    return Attempt(
        number=number,
        start=start,
        end=max(start, float(end.get("end") or last_word)),
        cause=str(end.get("cause") or ("done" if "done" in kinds else RUNNING)),
        reason=str(end.get("reason") or ""),
        job=str(job_id) if job_id is not None else "",
        starter=(claim["host"], claim["pid"]) if claim.get("pid") else (number,),
        ranks=ranks,
        nodes=max(1, ranks // int(resumed.get("local_world_size") or job.get("gpus_per_node") or ranks)),
        device=str(resumed.get("device", "cpu" if not resumed else "")) or "cpu",
        hosts=tuple(map(str, end.get("hosts") or ([claim["host"]] if claim.get("host") else []))),
        first_step=first,
        last_step=int(last_steps.get(number, first)),
        committed=end.get("committed_step"),
    )


def _before(attempt: Attempt, later: float) -> Attempt:
    """One without an end, which another has taken over from."""
    return Attempt(**{**attempt.__dict__, "end": max(attempt.start, later)})


def _newest(told: History, key: str) -> dict[int, float]:
    """Of each epoch, the largest of its steps' numbers."""
    values = told.whole("step").astype(np.float64) if key == "step" else told.numbers(key)
    epochs = told.whole("epoch")
    return {epoch: float(np.fmax.reduce(values[epochs == epoch], initial=0.0)) for epoch in np.unique(epochs).tolist()}
