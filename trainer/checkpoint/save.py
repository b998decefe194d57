"""Saving beside the training: the state is copied between two steps, and written while the next ones run."""

from __future__ import annotations

import re
import secrets
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import torch

from durable import fsync_path
from trainer import claims
from trainer.checkpoint import Point, folder_name, names
from trainer.checkpoint.format import BLOCK, VERSION, Manifest, Parameter
from trainer.checkpoint.image import Image
from trainer.checkpoint.lineage import checkpoints_in_line
from trainer.checkpoint.rng import rng_state
from trainer.checkpoint.staging import Staging
from trainer.checkpoint.writers import Writers
from trainer.engines.engine import Engine
from trainer.engines.shard import Shard
from trainer.runtime import Runtime


@dataclass(frozen=True)
class Content:
    """What a checkpoint says besides its tensors."""

    layout: dict[str, Any]
    config: dict[str, Any]
    data: str
    state: dict[str, int]


@dataclass(frozen=True)
class Saved:
    point: Point
    size: int
    """Bytes of all ranks."""
    seconds: float
    """From its begin until it was durable."""
    stall: float
    """Seconds for which the training waited."""


class Saver:
    """Every rank calls the same at the same step. One save is under way at a time."""

    def __init__(self, runtime: Runtime, engine: Engine, keep: int, writers: Writers) -> None:
        """Collective. The engine's shards are there, with whatever values."""
        self._runtime, self._engine, self._keep = runtime, engine, keep
        self.folder, self._writers = writers.folder, writers
        self._staging = Staging(self._image(list(engine.shards())).size, runtime, writers.memory)
        self._running: Running | None = None
        self._deletion: Thread | None = None

    @property
    def lacking(self) -> str | None:
        """Why the training waits for its saves; None: it does not."""
        return self._staging.lacking

    @property
    def ended(self) -> bool:
        """A save is under way, and this rank's writer has come to its end."""
        return self._running is not None and not self._running.thread.is_alive()

    def begin(self, step: int, content: Content) -> None:
        """When this returns, the state may change."""
        assert self._running is None
        began = time.monotonic()
        shards = list(self._engine.shards())
        image, manifest = self._image(shards), self._manifest(step, content, shards)
        data = self._staging.take(image)
        self._running = Running(manifest, began, lambda: self._writers.save(manifest, image, data))
        if self._staging.lacking:  # it is the state itself that is written
            self._running.thread.join()
        self._running.stall = time.monotonic() - began

    def finish(self) -> Saved:
        """Wait for the save under way. Raises SaveFailed or Fenced, on every rank alike."""
        assert self._running is not None
        running, self._running = self._running, None
        return running.wait()

    def save(self, step: int, content: Content) -> Saved:
        """Begin and finish."""
        self.begin(step, content)
        return self.finish()

    def _image(self, shards: list[Shard]) -> Image:
        return Image(shards, self._engine.replicas, rng_state())

    def _manifest(self, step: int, content: Content, shards: list[Shard]) -> Manifest:
        """Rank 0's is the one that is written: to ask a GPU for each parameter's count of steps takes time."""
        known = shards if self._runtime.leads else []
        return Manifest(
            version=VERSION,
            step=step,
            epoch=self._runtime.epoch,
            layout=content.layout,
            config=content.config,
            data=content.data,
            state=content.state,
            block=BLOCK,
            parameters={s.name: Parameter(list(s.shape), int(s.step.item()), _in_bf16(s)) for s in known},
            files=[],
        )

    # --- what is not kept ---

    def clean_up(self) -> None:
        """By rank 0 after a commit: what is not kept any more goes, by a rename first, so that a kill in the middle of
        a deletion leaves nothing that looks like a checkpoint. Only the run's line is counted: a zombie's checkpoint of
        a later step would push out ours, and nothing could be resumed. The deletion itself goes on beside the next
        steps: the other ranks would wait for it."""
        run_dir, epoch = self._runtime.run_dir, self._runtime.epoch
        if not self._runtime.leads or claims.fenced(run_dir, epoch):
            return
        for point in checkpoints_in_line(run_dir)[self._keep :]:
            trash = self.folder / f".trash-{folder_name(point)}-{secrets.token_hex(4)}"
            (self.folder / folder_name(point)).rename(trash)
        if self._deletion is None or not self._deletion.is_alive():
            self._deletion = Thread(target=remove_leftovers, args=(self.folder, epoch), name="deletion", daemon=True)
            self._deletion.start()

    def end_clean_up(self) -> None:
        """By rank 0: all that is not kept is gone."""
        if self._deletion is not None:
            self._deletion.join()
        remove_leftovers(self.folder, self._runtime.epoch)


class Running:
    """A save under way, in a thread of its own."""

    def __init__(self, manifest: Manifest, began: float, work: Callable[[], int]) -> None:
        """`work` returns the bytes of all ranks."""
        self._point, self._began, self._work = Point(manifest.step, manifest.epoch), began, work
        self._size, self._ended = 0, 0.0
        self._error: BaseException | None = None
        self.stall = 0.0
        self.thread = Thread(target=self._run, name="save", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self._size = self._work()
        except BaseException as error:  # to be raised where the loop meets it
            self._error = error
        self._ended = time.monotonic()

    def wait(self) -> Saved:
        began = time.monotonic()
        self.thread.join()
        self.stall += time.monotonic() - began
        if self._error is not None:
            raise self._error
        return Saved(self._point, self._size, self._ended - self._began, self.stall)


def _in_bf16(shard: Shard) -> list[str]:
    return [kind for kind, kept in shard.tensors.items() if getattr(kept, "dtype", None) == torch.bfloat16]


def remove_leftovers(folder: Path, epoch: int) -> None:
    """Deletes trash, and what earlier epochs began to write and did not commit. Never a later epoch's: we may be the
    zombie. What cannot be deleted now is left to the next time."""
    with suppress(OSError):
        fsync_path(folder)  # or a crash of the host gives a checkpoint its name back, and not its files
        for name in names(folder):
            begun = re.fullmatch(r"\.tmp-\d+-e(\d{4,})-.*", name)
            if begun and int(begun[1]) < epoch or name.startswith(".trash-"):
                shutil.rmtree(folder / name, ignore_errors=True)
