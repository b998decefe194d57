"""What is told of a step when its loss has arrived, and what follows from that."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from trainer import events
from trainer.board import Board
from trainer.data.batches import Batches
from trainer.guard import IN_A_ROW, Diverged, Guard, happened_before
from trainer.runtime import Runtime
from trainer.throughput import in_words
from trainer.votes import Share


@dataclass(frozen=True)
class StepDone:
    """A step whose loss is not known yet: this rank's share of it travels with the next vote, while the next step
    computes."""

    step: int
    lr: float
    norm: float
    valid_tokens: int
    hash: int
    seconds: float
    speed: dict[str, float]
    share: Share


class StepLog:
    def __init__(self, runtime: Runtime, tell: Callable[..., None], board: Board, batches: Batches, total: int) -> None:
        """`tell`: the attempt's voice."""
        self._runtime, self._tell, self._board, self._batches, self._total = runtime, tell, board, batches, total
        self.guard = Guard()

    def settle(self, done: StepDone, loss: float) -> None:
        """A step whose loss has arrived: tell it. Raises Diverged."""
        skipped = not math.isfinite(done.norm)
        said = f"loss {loss:.4f}  lr {done.lr:.2e}  norm {done.norm:.2f}  {in_words(done.speed)}"
        text = f"step {done.step:>6} of {self._total}  {said}{'  skipped' * skipped}"
        values = {"loss": loss, "lr": done.lr, "grad_norm": done.norm}
        sample = {"tokens": done.valid_tokens, "hash": done.hash, **({"skipped": True} if skipped else {})}
        finite = {key: value if math.isfinite(value) else None for key, value in values.items()}
        self._tell("step", done.step, text, **finite, **sample, seconds=done.seconds, **done.speed)
        self._board.add(done.step, **values, **done.speed)
        if skipped:
            self._give_up_when_they_repeat()
        elif (ratio := self.guard.saw_loss(loss)) is not None:
            text = f"the loss of step {done.step} is {ratio:.0f} times the median of those before"
            self._tell("loss_spike", done.step, text, loss=loss, ratio=ratio)

    def _give_up_when_they_repeat(self) -> None:
        """Collective. Raises Diverged."""
        steps = self.guard.skipped[:IN_A_ROW]
        if len(steps) < IN_A_ROW:
            return
        run_dir, leads = self._runtime.run_dir, self._runtime.leads
        again = self._runtime.from_leader(happened_before(events.read(run_dir), steps[0]) if leads else None)
        samples = {str(step): self._batches.samples(step - 1) for step in steps}
        self._tell("diverged", steps[0], again=again, samples=samples)
        first = ", ".join(map(str, samples[str(steps[0])][:8]))
        raise Diverged(
            f"the gradient of steps {steps[0]} to {steps[-1]} is not finite{', again' * again}: lower optim.lr, or "
            f"look at their samples (sequences {first} ... of step {steps[0]}; all: events.jsonl, event diverged)",
            again,
        )
