"""What of the run is safe, and how the loop brings it up to date: beside the next steps, or at once when it leaves."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Any

from trainer.attempt import Attempt
from trainer.checkpoint import Point
from trainer.checkpoint.interval import Rhythm
from trainer.checkpoint.retention import Retention
from trainer.checkpoint.save import Content, Saver
from trainer.checkpoint.writers import SaveFailed, Writers
from trainer.engines.engine import Engine
from trainer.schema import Checkpoint

LOST_IN_A_ROW = 2
"""Saves: what is not safe would only grow."""


@dataclass
class Progress:
    """The state of the loop."""

    step: int = 0
    """Optimizer steps that are done."""
    tokens_seen: int = 0
    evaluated: int = -1
    """Step after which the last evaluation was made."""
    first_losses: dict[str, float] = field(default_factory=dict)
    """Of each held-out set at its first evaluation, where the rise is limited."""


class Saves:
    """Every rank calls the same at the same step."""

    def __init__(
        self, settings: Checkpoint, attempt: Attempt, engine: Engine, writers: Writers, content: Content
    ) -> None:
        """Collective. `content`: of every checkpoint, but for the state."""
        self._settings, self._attempt, self._content = settings, attempt, content
        self.saver = Saver(attempt.runtime, engine, writers)
        self.retention = Retention(attempt.runtime.run_dir, attempt.runtime.epoch, settings)
        self.committed: Point | None = None
        """The newest checkpoint."""
        self.safe: Progress | None = None
        """What it holds, when it is this run's own."""
        self._under_way: Progress | None = None
        self._lost = 0
        self._loss: float | None = None  # of the last evaluation
        if self.saver.lacking:
            attempt.say(f"the training waits while a checkpoint is written: to go on takes {self.saver.lacking}")

    def start(self, step: int) -> None:
        """The run goes on from here."""
        attempt = self._attempt
        longest = attempt.watchdog.save_seconds
        self.rhythm = Rhythm(self._settings, attempt.runtime, step, attempt.lead, attempt.tell, longest=longest)
        self.clean_up()

    def evaluated(self, loss: float) -> None:
        self._loss = loss if isfinite(loss) else None

    def due(self, progress: Progress, asked: bool) -> bool:
        """`asked`: by the rhythm of rank 0. The best can be kept only of what is saved, so each evaluated state is."""
        may_be_best = self._settings.keep_best > 0 and progress.evaluated == progress.step
        return progress.step > 0 and (asked or may_be_best) and progress not in (self.safe, self._under_way)

    def begin(self, progress: Progress) -> None:
        """Beside the next steps; the save before has to come to its end first. Raises what `end` raises."""
        self._attempt.watchdog.enter("save")
        self.end()
        self._begin(progress)

    def end(self) -> None:
        """The save under way, if there is one, is waited for, and what is old goes. Raises Fenced, and SaveFailed for
        the second lost one in a row."""
        if self._finish():
            self.clean_up()
        elif self._lost == LOST_IN_A_ROW:
            raise SaveFailed(f"{self._lost} checkpoints in a row could not be saved")

    def at_stop(self, progress: Progress, may_begin: bool) -> None:
        """What is old stays until the next attempt: now only the save counts. Raises Fenced, and SaveFailed when a save
        was made and what is done is not safe."""
        self._attempt.watchdog.enter("save")
        self._finish(leaving=True)
        if may_begin and progress.step and self.safe != progress and not self._too_late(progress.step):
            self._begin(progress)
            if not self._finish(leaving=True):
                raise SaveFailed(f"step {progress.step} is not saved")

    def clean_up(self) -> None:
        try:
            if self._attempt.runtime.leads:
                self.retention.clean_up()
        except OSError as error:
            self._attempt.say(f"old checkpoints could not be removed: {error}")

    def _begin(self, progress: Progress) -> None:
        state = {"tokens_seen": progress.tokens_seen, "evaluated": progress.evaluated}
        loss = self._loss if progress.evaluated == progress.step else None
        content = replace(self._content, state=state, evaluation_loss=loss, first_losses=progress.first_losses)
        self.saver.begin(progress.step, content)
        self.rhythm.saves(progress.step)
        self._under_way, self._attempt.lead.saving = replace(progress), True

    def _finish(self, leaving: bool = False) -> bool:
        """False: no save was under way, or it failed, which is said; then the last checkpoint stands."""
        if (progress := self._under_way) is None:
            return False
        self._under_way, self._attempt.lead.saving = None, False
        try:
            saved = self.saver.finish()
        except SaveFailed as error:
            self._lost += 1
            text = f"the checkpoint of step {progress.step} could not be saved, the last one stands: {error}"
            self._attempt.tell("save_failed", progress.step, text, error=str(error))
            return False
        self.committed, self.safe, self._lost = saved.point, progress, 0
        self._attempt.lead.saw_save(saved.seconds, None if leaving else saved.stall)
        about: dict[str, Any] = {"leaving": True} if leaving else {}
        about |= {"seconds": saved.seconds, "stall": saved.stall, "bytes": saved.size}
        self._attempt.tell("save", progress.step, **about)
        return True

    def _too_late(self, step: int) -> bool:
        """A save that cannot end before Slurm's kill is not begun: the last one counts. Rank 0 knows."""
        attempt = self._attempt
        left, needed = attempt.stop.seconds_left(), attempt.lead.fastest_save()
        late: bool = attempt.runtime.from_leader(left is not None and needed > left)
        if late and attempt.runtime.leads:
            text = f"no save: it takes {needed:.1f} s and {left:.1f} s are left; what was saved before counts"
            attempt.tell("save_skipped", step, text, seconds_left=left, seconds_needed=needed)
        return late
