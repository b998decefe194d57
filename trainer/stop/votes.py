"""What the ranks say to each other at every step, and what they all know after it.

What a step needs from all ranks travels with the vote: the batch's count of valid tokens and its sample hash, the loss
and the own time of the last step that was done.
"""

from __future__ import annotations

import signal
import struct
from typing import NamedTuple

from trainer import exits

# What may be voted for; the first one with a vote wins. A fenced attempt may not save, whatever else is asked of it;
# after that the user's word counts first.
FENCED, USER, CTRL_C, SUPERVISOR, DEADLINE = "fenced", "stop file", "Ctrl-C", "supervisor", "deadline"
_SIGNALS = tuple(f"signal {s.name}" for s in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM))
REASONS = (FENCED, USER, CTRL_C, SUPERVISOR, DEADLINE, *_SIGNALS, None)  # the last one: go on
_CODES: dict[str | None, int] = {FENCED: exits.FENCED, USER: exits.STOPPED, CTRL_C: exits.STOPPED}

VOTE = struct.Struct("<bb??qqdd")
AGREEMENT = struct.Struct("<bi??qqd")


class Share(NamedTuple):
    """What one rank adds to a step that is done."""

    loss: float = 0.0
    """Sum over its valid tokens."""
    seconds: float = 0.0
    """In which it computed and waited for nobody."""


NOTHING_DONE = Share()


class Vote(NamedTuple):
    reason: int
    """Index of REASONS; the last one: go on."""
    waiting: bool
    saved: bool
    due: bool
    valid_tokens: int
    hash: int
    loss: float
    seconds: float


class Agreement(NamedTuple):
    """What all ranks know alike after a vote."""

    choice: int
    """Index of REASONS."""
    waiting: int
    """Ranks that are not ready; the batch's numbers count only when there are none."""
    saved: bool
    """Every rank's writer has come to its end."""
    due: bool
    """All save after the step that runs while this vote travels: rank 0's word."""
    valid_tokens: int
    """Of the global batch that the vote came with."""
    hash: int
    """Of its samples."""
    loss: float
    """Sum over the valid tokens of the last step that was done."""

    @property
    def reason(self) -> str | None:
        """Why to stop; None: go on."""
        return REASONS[self.choice]

    @property
    def may_save(self) -> bool:
        return self.reason != FENCED

    @property
    def code(self) -> int:
        return _CODES.get(self.reason, exits.CONTINUE)


def count(votes: list[Vote]) -> Agreement:
    """In the order of the ranks: the same sums in every run."""
    samples = sum(vote.hash for vote in votes)
    return Agreement(
        min(vote.reason for vote in votes),
        sum(vote.waiting for vote in votes),
        all(vote.saved for vote in votes),
        any(vote.due for vote in votes),
        sum(vote.valid_tokens for vote in votes),
        (samples + 2**63) % 2**64 - 2**63,  # wraps, as the sum in a batch does
        sum(vote.loss for vote in votes),
    )
