"""Which checkpoints of a run stay, and why. The folder alone tells it: losses lie in the manifests."""

from __future__ import annotations

import re
import shutil
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from threading import Thread

from durable import fsync_path, nonce
from trainer import claims
from trainer.checkpoint import CheckpointBroken, Point, folder_name, names
from trainer.checkpoint.format import read_manifest
from trainer.checkpoint.lineage import checkpoints_in_line
from trainer.schema import Checkpoint


def staying(line: Mapping[Point, float | None], settings: Checkpoint) -> dict[Point, str]:
    """Why each checkpoint stays that does. `line`: the run's, with the held-out losses of those that have one."""
    points = sorted(line, reverse=True)
    why: dict[Point, list[str]] = defaultdict(list)
    for point in points[: settings.keep]:
        why[point].append(f"last {settings.keep}")
    if settings.keep_every:
        # Saves need not fall on a multiple (a stop, an interval in minutes): the first one from there on stands for it.
        first = {point.step // settings.keep_every: point for point in points}
        for multiple, point in first.items():
            if multiple:
                why[point].append(f"first from step {multiple * settings.keep_every:,} on")
    with_loss = sorted((loss, point) for point, loss in line.items() if loss is not None)
    for loss, point in with_loss[: settings.keep_best]:
        why[point].append(f"best {settings.keep_best}: loss {loss:.4f}")
    return {point: ", ".join(reasons) for point, reasons in why.items()}


def losses(checkpoints: Path, points: Iterable[Point]) -> dict[Point, float | None]:
    """Held-out losses of the points whose manifest is whole."""
    found = {}
    for point in points:
        with suppress(CheckpointBroken):
            found[point] = read_manifest(checkpoints / folder_name(point)).evaluation_loss
    return found


class Retention:
    """By rank 0 of the newest attempt, after each commit."""

    def __init__(self, run_dir: Path, epoch: int, settings: Checkpoint) -> None:
        self._run_dir, self._epoch, self._settings = run_dir, epoch, settings
        self._folder = run_dir / "checkpoints"
        self._losses: dict[Point, float | None] = {}  # a manifest is read once: a large one takes a while
        self._deletion: Thread | None = None

    def clean_up(self) -> None:
        """Only the run's line is counted: a zombie's checkpoint of a later step would push out ours, and nothing could
        be resumed. The deletion itself goes on beside the next steps: the other ranks would wait for it."""
        if claims.fenced(self._run_dir, self._epoch):
            return
        line = checkpoints_in_line(self._run_dir)
        if self._settings.keep_best:
            self._losses |= losses(self._folder, (point for point in line if point not in self._losses))
        stays = staying({point: self._losses.get(point) for point in line}, self._settings)
        for point in line:
            if point not in stays:
                put_aside(self._folder, point)
        if self._deletion is None or not self._deletion.is_alive():
            work = (self._folder, self._epoch)
            self._deletion = Thread(target=remove_leftovers, args=work, name="deletion", daemon=True)
            self._deletion.start()

    def finish(self) -> None:
        """All that does not stay is gone."""
        if self._deletion is not None:
            self._deletion.join()
        remove_leftovers(self._folder, self._epoch)


def put_aside(checkpoints: Path, point: Point) -> Path:
    """Its folder is a checkpoint no more: a kill in the middle of the deletion leaves nothing that looks like one."""
    name = folder_name(point)
    return (checkpoints / name).rename(checkpoints / f".trash-{name}-{nonce()}")


def remove_leftovers(folder: Path, epoch: int) -> None:
    """Deletes trash, and what earlier epochs began to write and did not commit. Never a later epoch's: we may be the
    zombie. What cannot be deleted now is left to the next time."""
    with suppress(OSError):
        fsync_path(folder)  # or a crash of the host gives a checkpoint its name back, and not its files
        for name in names(folder):
            begun = re.fullmatch(r"\.tmp-\d+-e(\d{4,})-.*", name)
            if begun and int(begun[1]) < epoch or name.startswith(".trash-"):
                shutil.rmtree(folder / name, ignore_errors=True)
