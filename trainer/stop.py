"""The agreed stop: once a step all ranks add up one small vector, and so know at the same step whether to stop.

The vote for a step is cast with its batch in hand, before the step before it runs, so that it travels while that one
computes. It carries the batch's count of valid tokens and its sample hash along: the agreement costs no collective of
its own.
"""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from trainer import exits, signals
from trainer.data.batches import RankBatch
from trainer.lead import LeadTime
from trainer.runtime import Runtime

POLL_SECONDS = 0.5  # between two looks at files, which may lie on a busy file system

# What may be voted for, the user's word first: the first reason with a vote wins.
_USER, _CTRL_C, _SUPERVISOR, _DEADLINE = "stop file", "Ctrl-C", "supervisor", "deadline"
_SIGNALS = tuple(f"signal {s.name}" for s in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM))
REASONS = (_USER, _CTRL_C, _SUPERVISOR, _DEADLINE, *_SIGNALS)


@dataclass(frozen=True)
class Agreement:
    """What all ranks know alike after a vote."""

    reason: str | None
    """Why to stop; None: go on."""
    valid_tokens: int
    """Of the global batch that the vote came with."""
    hash: int
    """Of its samples."""

    @property
    def code(self) -> int:
        return exits.STOPPED if self.reason in (_USER, _CTRL_C) else exits.CONTINUE


class Ballot:
    """A vote under way."""

    def __init__(self, votes: torch.Tensor, work: dist.Work) -> None:
        self._votes, self._work = votes, work

    def read(self) -> Agreement:
        self._work.wait()
        *counts, valid_tokens, samples = self._votes.tolist()
        reason = next((name for name, count in zip(REASONS, counts, strict=True) if count), None)
        return Agreement(reason, valid_tokens, samples)


class Stop:
    def __init__(self, runtime: Runtime, lead: LeadTime) -> None:
        self._runtime, self._lead = runtime, lead
        self._deadline = runtime.deadline
        self._word: str | None = None
        self._user_asks = False
        self._next_look = 0.0

    def cast(self, batch: RankBatch | None = None) -> Ballot:
        """This rank's vote, with its share of the coming batch. Collective; returns at once."""
        mine = self._reason()
        votes = [int(reason == mine) for reason in REASONS]
        votes += [batch.valid_tokens, batch.hash] if batch else [0, 0]
        tensor = torch.tensor(votes, dtype=torch.int64)  # the hashes' sum wraps around, on every rank alike
        return Ballot(tensor, self._runtime.sum_async(tensor))

    def text(self, agreement: Agreement) -> str:
        """The reason in words; the supervisor's are in its file, which rank 0 has read."""
        return (self._word or _SUPERVISOR) if agreement.reason == _SUPERVISOR else str(agreement.reason)

    def _reason(self) -> str | None:
        """Why this rank wants to stop. Files and the deadline are rank 0's business alone: one clock decides."""
        if self._runtime.leads and (asked := self._asked()) is not None:
            return asked
        received = signals.received()
        if received is None:
            return None
        return _CTRL_C if received == signal.SIGINT else f"signal {received.name}"

    def _asked(self) -> str | None:
        run_dir, epoch = self._runtime.run_dir, self._runtime.epoch
        if time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + POLL_SECONDS
            self._user_asks = (run_dir / "stop").exists()
            self._word = _first_line(run_dir / "claims" / f"{epoch:04d}.stop")
            moved = _first_line(run_dir / "deadline")
            self._deadline = float(moved) if moved else self._deadline
        if self._user_asks:
            return _USER
        if self._word is not None:
            return _SUPERVISOR
        late = self._deadline is not None and time.time() > self._deadline - self._lead.seconds()
        return _DEADLINE if late else None


def _first_line(path: Path) -> str | None:
    """None: there is no such file; its first line, or a word for an empty one."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return lines[0] if lines else ""
