"""Which checkpoints belong to the run's one line of history. No clocks decide, and no `latest` file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from settings import ConfigError
from trainer import claims
from trainer.checkpoint import Point, committed, folder_name


def checkpoints_in_line(run_dir: Path) -> list[Point]:
    """The run's checkpoints that count, newest first."""
    return in_lineage(committed(run_dir / "checkpoints"), claims.resume_points(run_dir))


def checkpoint_after(run_dir: Path, step: int | None) -> Path:
    """The run's checkpoint after this step; None: its newest. Raises ConfigError with the steps that are there."""
    points = checkpoints_in_line(run_dir)
    chosen = [point for point in points if step in (None, point.step)]
    if not chosen:
        steps = ", ".join(str(point.step) for point in points) or "none"
        wanted = f"of step {step} " * (step is not None)
        raise ConfigError(f"there is no checkpoint {wanted}in {run_dir}: steps that are there: {steps}")
    return run_dir / "checkpoints" / folder_name(chosen[0])


def in_lineage(points: Iterable[Point], resumed: Mapping[int, Point]) -> list[Point]:
    """The points that no later epoch has left behind, newest first.

    An epoch that resumed at step s starts a new line there: whatever an earlier epoch saved beyond s, also as a zombie
    that did not know yet, is on a branch that was given up.
    """
    kept = [p for p in points if all(p.step <= at.step for epoch, at in resumed.items() if epoch > p.epoch)]
    return sorted(kept, reverse=True)
