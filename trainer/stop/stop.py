"""The agreed stop: all ranks vote, rank 0 counts, and so all know at the same step whether to stop.

In the loop the vote for a step is cast with its batch in hand, before the step before it runs, so that it travels while
that one computes. A rank that does not have its batch yet, or that still prepares the data, says so in its vote; then
all vote again, so that a stop waits for nobody.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from trainer import claims
from trainer.data.batches import RankBatch
from trainer.data.feed import Feed
from trainer.runtime import Runtime
from trainer.stop import signals
from trainer.stop.lead import LeadTime
from trainer.stop.star import Star
from trainer.stop.votes import (
    AGREEMENT,
    CTRL_C,
    DEADLINE,
    FENCED,
    NOTHING_DONE,
    REASONS,
    SUPERVISOR,
    USER,
    VOTE,
    Agreement,
    Share,
    Vote,
    count,
)

POLL_SECONDS = 0.5  # between two looks at files, which may lie on a busy file system
PATIENCE = 0.5  # seconds for a batch, before a rank votes without it
KILL_WAIT = 30.0  # seconds from the deadline to Slurm's kill, on a site that has not changed it


class Stopped(Exception):
    """All ranks agreed to stop before the first step: there is nothing to save."""

    def __init__(self, agreement: Agreement) -> None:
        super().__init__(agreement.reason)
        self.agreement = agreement


class Stop:
    """Every method but `text` and `seconds_left` is collective."""

    def __init__(self, runtime: Runtime, star: Star, lead: LeadTime, alive: Callable[[], None]) -> None:
        """`alive` is called after a vote that shows that the ranks still get on."""
        self._runtime, self._star, self._lead, self._alive = runtime, star, lead, alive
        self._deadline, self._kill = Moment(), Moment()
        self._deadline.hear(runtime.deadline)
        self._word: str | None = None
        self._user_asks = self._fenced = False
        self._next_look = self._next_vote = 0.0

    # --- before the first step ---

    def still_working(self) -> None:
        """Called now and then by a rank that the others wait for in `wait_for_all`. Raises Stopped."""
        if time.monotonic() >= self._next_vote:
            self._vote(waiting=True)
            self._next_vote = time.monotonic() + POLL_SECONDS

    def wait_for_all(self) -> None:
        """This rank has done its part: until every rank has. Raises Stopped."""
        while self._vote(waiting=False).waiting:
            pass

    def _vote(self, waiting: bool) -> Agreement:
        agreement = self._cast(None, waiting, NOTHING_DONE).read()
        self._alive()
        if agreement.reason is not None:
            raise Stopped(agreement)
        return agreement

    # --- in the loop ---

    def cast(self, feed: Feed, done: Share = NOTHING_DONE, saved: bool = False, due: bool = False) -> Ballot:
        """This rank's vote, with its share of the coming batch when that comes in time, and of the last step. `saved`:
        its writer has come to its end; `due`: of rank 0, all are to save after the coming step."""
        ready = feed.ready(PATIENCE)
        return self._cast(feed.next if ready else None, not ready, done, saved, due)

    def agree(self, feed: Feed) -> Agreement:
        """Vote until every rank has its batch, or all stop. A rank that gets no data is no sign of life."""
        began, before = time.monotonic(), feed.waited
        while (agreement := self.cast(feed).read()).waiting and agreement.reason is None:
            pass
        feed.waited = before + time.monotonic() - began
        self._alive()
        return agreement

    def _cast(
        self, batch: RankBatch | None, waiting: bool, done: Share, saved: bool = False, due: bool = False
    ) -> Ballot:
        reason = REASONS.index(self._reason())
        tokens, samples = (batch.valid_tokens, batch.hash) if batch else (0, 0)
        return Ballot(self._star, Vote(reason, waiting, saved, due, tokens, samples, *done), self._runtime.leads)

    # --- why ---

    def text(self, agreement: Agreement) -> str:
        """The reason in words; the supervisor's are in its file, which rank 0 has read."""
        words = {SUPERVISOR: self._word or SUPERVISOR, FENCED: "fenced: a later attempt owns the run"}
        return words.get(agreement.reason or "", str(agreement.reason))

    def seconds_left(self) -> float | None:
        """Until Slurm kills the ranks, as far as rank 0 was told: by the supervisor, else by the deadline."""
        to_kill, to_deadline = self._kill.seconds_left(), self._deadline.seconds_left()
        if to_kill is None and to_deadline is not None:
            return to_deadline + KILL_WAIT
        return to_kill

    def _reason(self) -> str | None:
        """Why this rank wants to stop. Files and the deadline are rank 0's business alone: one clock decides."""
        if self._runtime.leads and (asked := self._asked()) is not None:
            return asked
        received = signals.received()
        if received is None:
            return None
        return CTRL_C if received == signal.SIGINT else f"signal {received.name}"

    def _asked(self) -> str | None:
        if time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + POLL_SECONDS
            self._look()
        if self._fenced:
            return FENCED
        if self._user_asks:
            return USER
        if self._word is not None:
            return SUPERVISOR
        left = self._deadline.seconds_left()
        return DEADLINE if left is not None and left < self._lead.seconds() else None

    def _look(self) -> None:
        """A file system that fails for a moment ends no training: what was known counts until the next look."""
        run_dir, epoch = self._runtime.run_dir, self._runtime.epoch
        with suppress(OSError):
            self._fenced = claims.fenced(run_dir, epoch)
        with suppress(OSError):
            self._user_asks = (run_dir / "stop").exists()
        if word := _lines(run_dir / "claims" / f"{epoch:04d}.stop"):
            self._word = word[0]
            self._kill.hear(_number("".join(word[1:2]).removeprefix("until ")))
        self._deadline.hear(_number("".join(_lines(run_dir / "deadline")[:1])))
        self._lead.allot(self._deadline.seconds_left())


class Ballot:
    """A vote under way."""

    def __init__(self, star: Star, mine: Vote, leads: bool) -> None:
        self._star, self._mine, self._leads = star, mine, leads
        if not leads:
            star.send(VOTE.pack(*mine))
        self.seconds: list[float] = []
        """Each rank's own, when rank 0 has read the vote."""

    def read(self) -> Agreement:
        if not self._leads:
            return Agreement(*AGREEMENT.unpack(self._star.receive(AGREEMENT.size)[0]))
        votes = [self._mine, *(Vote(*VOTE.unpack(message)) for message in self._star.receive(VOTE.size))]
        agreement = count(votes)
        self._star.send(AGREEMENT.pack(*agreement))
        self.seconds = [vote.seconds for vote in votes]
        return agreement


class Moment:
    """A moment of the wall clock, kept on the monotonic one: to set the clock while the run goes on moves nothing."""

    def __init__(self) -> None:
        self._said: float | None = None
        self._at = 0.0

    def hear(self, unix: float | None) -> None:
        """What a file says now; None: nothing, and what was said before holds."""
        if unix is not None and unix != self._said:
            self._said, self._at = unix, time.monotonic() + unix - time.time()

    def seconds_left(self) -> float | None:
        """None: nothing was said."""
        return None if self._said is None else self._at - time.monotonic()


def _lines(path: Path) -> list[str]:
    """Empty where there is no such file, at least one where there is."""
    try:
        return path.read_text(encoding="utf-8").splitlines() or [""]
    except OSError:
        return []


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
