"""Run folders as the trainer and its supervisor leave them, with a clock of their own: where each second went is known."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from settings import dump_yaml
from tests.trainer.data.samples import prepare_texts
from trainer.audit import _sequence_hashes
from trainer.data.order import stream
from trainer.records.events import line_hash

BATCH, SEED, BORN = 6, 5, 1_760_000_000.0
STEP, EVALUATION, STALL, SAVE, START, TAIL, LEAVE = 0.5, 2.0, 0.25, 3.0, 20.0, 1.0, 4.0
"""Seconds that things take."""
FIELDS = {"lr": 1e-3, "tokens": 96, "memory_bytes": 3e9, "data_wait_seconds": 0.01, "seconds": STEP - 0.01}


@dataclass(frozen=True)
class Life:
    """One attempt: it resumes after `first` steps, and is over after `last`."""

    first: int
    last: int
    cause: str
    queue: float = 0.0
    """Seconds without nodes before it."""
    here: bool = False
    """It starts in the allocation of the one before."""


FIVE_CUTS = [
    Life(0, 60, "timeout", queue=300.0),
    Life(60, 95, "crash", queue=40.0),
    Life(80, 130, "preemption", here=True),
    Life(130, 171, "node_failure", queue=900.0),
    Life(160, 220, "stop", queue=30.0),
    Life(220, 300, "done", queue=5000.0),
]
"""Saved every 40 steps, and at a stop."""


@dataclass
class Truth:
    """What such a run is."""

    path: Path
    parts: dict[str, float] = field(default_factory=dict)
    end: float = BORN

    def spend(self, part: str, seconds: float) -> float:
        self.parts[part] = self.parts.get(part, 0.0) + seconds
        self.end += seconds
        return self.end


def write_run(folder: Path, lives: list[Life], evaluate: int = 50, save: int = 40, documents: int = 60) -> Truth:
    """Below `folder`, with prepared data beside it."""
    truth = Truth(folder / "run")
    (truth.path / "claims").mkdir(parents=True)
    prepared = prepare_texts(folder, documents)
    total = lives[-1].last
    config = {
        "name": "run",
        "model": {"config": {"model_type": "llama"}, "tokenizer": str(folder / "tokenizer")},
        "data": {"train": [str(folder / "train.jsonl")], "seq_len": 16},
        "train": {"global_batch_size": BATCH, "steps": total, "seed": SEED},
        "optim": {"lr": 1e-3},
    }
    (truth.path / "config.yaml").write_text(dump_yaml(config))
    used = stream(0, total * BATCH, prepared.sequences, SEED).reshape(-1, BATCH)
    hashes = _sequence_hashes("", prepared)[used].sum(axis=1).tolist()
    ends = [min((later.first for later in lives[number:]), default=total) for number in range(1, len(lives) + 1)]
    head, places = line_hash(b""), {"jobs.jsonl": [{"job": "1", "after": None, "time": BORN}], "attempts.jsonl": []}
    with open(truth.path / "events.jsonl", "wb") as file:
        for number, (life, end) in enumerate(zip(lives, ends, strict=True), 1):
            start = truth.spend("start" if life.here else "queue", life.queue or 3.0)
            for event in _told(truth, number, life, end, hashes, evaluate, save):
                head = _write(file, {**event, "epoch": number, "time": truth.end, "chain": head})
            kind = "leaving" if life.cause in ("done", "stop", "timeout", "preemption") else "lost"
            truth.spend(kind, LEAVE if kind == "leaving" else TAIL)
            _end(truth, places, number, life, start)
    for name, records in places.items():
        (truth.path / name).write_text("".join(json.dumps(record) + "\n" for record in records))
    if lives[-1].cause == "done":
        done = {"step": total, "tokens_seen": total * 96, "last_event": head, "time": truth.end}
        (truth.path / "DONE").write_text(json.dumps(done))
    return truth


def _write(file: Any, event: dict[str, Any]) -> str:
    line = json.dumps(event).encode()
    file.write(line + b"\n")
    return line_hash(line)


def _end(truth: Truth, places: dict[str, list[dict[str, Any]]], number: int, life: Life, start: float) -> None:
    claim = {
        "epoch": number,
        "job_id": str(number),
        "restart_count": 0,
        "time": start,
        "host": "node1",
        "pid": number - life.here,
        "nonce": f"{number:08x}",
    }
    claim |= {"resume_from": {"step": life.first, "epoch": max(1, number - 1)}} if life.first else {}
    (truth.path / "claims" / f"{number:04d}.json").write_text(json.dumps(claim))
    about = {"cause": life.cause, "reason": "", "first_step": life.first, "committed_step": life.last, "hosts": ["n1"]}
    places["attempts.jsonl"].append(
        {"attempt": number, "job_id": str(number), "start": start, "end": truth.end, **about}
    )


def _told(
    truth: Truth, number: int, life: Life, end: int, hashes: list[int], evaluate: int, save: int
) -> Iterator[dict[str, Any]]:
    """The events of an attempt, each at its time."""
    truth.spend("start", START - 1)
    ranks = {"world_size": 4, "local_world_size": 2, "device": "cpu", "versions": {"torch": "2.13"}}
    yield {"event": "resume", "step": life.first, "from": None, "of": len(hashes), **ranks}
    truth.spend("start", 1.0)
    yield {"event": "begin", "step": life.first}
    random = np.random.default_rng(number)
    for step in range(life.first + 1, life.last + 1):
        kind = "steps" if step <= end else "lost"
        if step % save == 1 and step > life.first + 1:
            truth.spend("saves", STALL)
            yield {"event": "save", "step": step - 1, "seconds": SAVE, "stall": STALL, "bytes": 1}
        truth.spend(kind, STEP)
        loss = 2 + 3 / (1 + step / 40) + 0.2 * float(random.random())
        speed = {"tokens_per_second": 190 + 9 * float(random.random()), "grad_norm": 0.4 + float(random.random())}
        yield {"event": "step", "step": step, "hash": hashes[step - 1], "loss": loss, **FIELDS, **speed}
        if step % evaluate == 0:
            truth.spend("evaluation", EVALUATION)
            losses = {"own": loss + 0.1, "general": 2.2 + step / 900}
            yield {"event": "evaluation", "step": step, "loss": loss + 0.1, "losses": losses}
    if life.cause in ("done", "stop", "timeout", "preemption"):
        if life.cause != "done":
            yield {"event": "stop", "step": life.last, "reason": life.cause}
        truth.spend("saves", SAVE)
        yield {"event": "save", "step": life.last, "seconds": SAVE, "stall": SAVE, "bytes": 1, "leaving": True}
    if life.cause == "done":
        truth.spend("leaving", 2.0)
        yield {"event": "done", "step": life.last}
