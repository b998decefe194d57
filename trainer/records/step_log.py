"""What is told of a step when its numbers have arrived, and what follows from that."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from trainer.data.batches import Batches
from trainer.engines.stopwatch import Launched
from trainer.guard import IN_A_ROW, Diverged, Guard, happened_before
from trainer.records import events
from trainer.records.board import Board
from trainer.records.throughput import Throughput, in_words
from trainer.runtime import Runtime
from trainer.stop.lead import LeadTime
from trainer.stop.votes import NOTHING_DONE, Share


@dataclass(frozen=True)
class Step:
    """A step that was launched. It ends with this rank's sum of the loss and the norm of the whole gradient."""

    step: int
    lr: float
    valid_tokens: int
    hash: int
    pairs: int
    waited: float
    """Seconds that this rank's host has waited for its batch."""
    launched: Launched
    own_seconds: Callable[[], float]


@dataclass(frozen=True)
class StepDone:
    """A step whose loss over all ranks is not known yet: this rank's share of it travels with a vote."""

    about: Step
    norm: float
    seconds: float
    waited: float
    """Seconds without a batch: as far as the device, too, had nothing to do."""


class StepLog:
    def __init__(
        self,
        runtime: Runtime,
        tell: Callable[..., None],
        lead: LeadTime,
        throughput: Throughput,
        board: Board,
        batches: Batches,
        total: int,
    ) -> None:
        """`tell`: the attempt's voice."""
        self._runtime, self._tell, self._lead, self._throughput = runtime, tell, lead, throughput
        self._board, self._batches, self._total = board, batches, total
        self._launched: deque[Step] = deque()
        self._before: Launched | None = None
        self._travelling: StepDone | None = None
        self.guard = Guard()

    @property
    def settled(self) -> bool:
        """No step's numbers are still to come."""
        return not self._launched and self._travelling is None

    def launched(self, step: Step) -> None:
        self._launched.append(step)

    def share(self, last: bool) -> Share:
        """For the next vote: of the oldest step that was launched, if there is a later one that the device has to do
        meanwhile; of the `last` one too, where it is waited for."""
        if not self._launched or len(self._launched) == 1 and not last:
            return NOTHING_DONE
        about = self._launched.popleft()
        seconds, (loss, norm) = about.launched.read()
        waited = min(about.waited, about.launched.idle_since(self._before)) if self._before else about.waited
        self._before = about.launched
        self._lead.saw_step(seconds, waited)
        self.guard.saw_norm(about.step, norm)
        self._travelling = StepDone(about, norm, seconds, waited)
        return Share(loss, about.own_seconds())

    def heard(self, loss: float) -> int | None:
        """The ranks' sum of the loss has come back with the vote that took a share along. Returns the step whose it is.

        Raises Diverged.
        """
        done, self._travelling = self._travelling, None
        if done is None:
            return None
        self._settle(done, loss / max(1, done.about.valid_tokens))
        return done.about.step

    def _settle(self, done: StepDone, loss: float) -> None:
        about = done.about
        skipped = not math.isfinite(done.norm)
        speed = self._throughput.saw_step(done.seconds, done.waited, about.valid_tokens, about.pairs)
        said = f"loss {loss:.4f}  lr {about.lr:.2e}  norm {done.norm:.2f}  {in_words(speed)}"
        text = f"step {about.step:>6} of {self._total}  {said}{'  skipped' * skipped}"
        values = {"loss": loss, "lr": about.lr, "grad_norm": done.norm}
        sample = {"tokens": about.valid_tokens, "hash": about.hash, **({"skipped": True} if skipped else {})}
        finite = {key: value if math.isfinite(value) else None for key, value in values.items()}
        self._tell("step", about.step, text, **finite, **sample, seconds=done.seconds, **speed)
        self._board.add(about.step, **values, **speed)
        if skipped:
            self._give_up_when_they_repeat()
        elif (ratio := self.guard.saw_loss(loss)) is not None:
            text = f"the loss of step {about.step} is {ratio:.0f} times the median of those before"
            self._tell("loss_spike", about.step, text, loss=loss, ratio=ratio)

    def _give_up_when_they_repeat(self) -> None:
        """Collective. Raises Diverged."""
        steps = self.guard.skipped[:IN_A_ROW]
        if len(steps) < IN_A_ROW:
            return
        runtime = self._runtime
        found = happened_before(events.read(runtime.run_dir), steps[0]) if runtime.leads else None
        again = runtime.from_leader(found)
        samples = {str(step): self._batches.samples(step - 1) for step in steps}
        self._tell("diverged", steps[0], again=again, samples=samples)
        first = ", ".join(map(str, samples[str(steps[0])][:8]))
        raise Diverged(
            f"the gradient of steps {steps[0]} to {steps[-1]} is not finite{', again' * again}: lower optim.lr, or "
            f"look at their samples (sequences {first} ... of step {steps[0]}; all: events.jsonl, event diverged)",
            again,
        )
