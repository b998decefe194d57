"""Saving beside the training: the state is copied between two steps, and written while the next ones run."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Thread
from typing import Any

import torch

from trainer.checkpoint import Point
from trainer.checkpoint.format import BLOCK, VERSION, Manifest, Parameter
from trainer.checkpoint.image import Image
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
    evaluation_loss: float | None = None
    first_losses: dict[str, float] = field(default_factory=dict)


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

    def __init__(self, runtime: Runtime, engine: Engine, writers: Writers) -> None:
        """Collective. The engine's shards are there, with whatever values."""
        self._runtime, self._engine = runtime, engine
        self.folder, self._writers = writers.folder, writers
        self._staging = Staging(self._image(list(engine.shards())).size, runtime, writers.memory)
        self._running: Running | None = None

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
            evaluation_loss=content.evaluation_loss,
            first_losses=content.first_losses,
        )


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
