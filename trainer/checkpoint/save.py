"""Saving: every rank writes its own file; one rank commits when all have reported success."""

from __future__ import annotations

import re
import secrets
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from torch import Tensor

from durable import fsync_path
from trainer import claims
from trainer.checkpoint import folder_name
from trainer.checkpoint.format import BLOCK, VERSION, Array, File, Manifest, Parameter, write_file, write_manifest
from trainer.checkpoint.lineage import checkpoints_in_line
from trainer.checkpoint.rng import rng_state
from trainer.claims import Point
from trainer.engines.engine import Engine
from trainer.engines.shard import Shard
from trainer.runtime import Runtime


class Fenced(Exception):
    """A later attempt has claimed the run: nothing was committed, and this attempt must leave."""


class SaveFailed(Exception):
    """No checkpoint came to be; the message names the rank and the error. The last one stands."""


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
    seconds: float
    size: int
    """Bytes of all ranks."""


class Saver:
    def __init__(self, runtime: Runtime, engine: Engine, keep: int) -> None:
        self._runtime, self._engine, self._keep = runtime, engine, keep
        self.folder = runtime.run_dir / "checkpoints"
        self._deletion: Thread | None = None

    def save(self, step: int, content: Content) -> Saved:
        """Collective. Raises SaveFailed or Fenced, on every rank alike."""
        began = time.monotonic()
        point = Point(step, self._runtime.epoch)
        nonce = self._runtime.from_leader(secrets.token_hex(4))
        temporary = self.folder / f".tmp-{folder_name(point)[5:]}-{nonce}"
        self._together(lambda: temporary.mkdir(parents=True) if self._runtime.leads else None, temporary)
        shards = list(self._engine.shards())
        files = self._together(lambda: self._write(temporary, shards), temporary)
        parameters = {s.name: Parameter(list(s.shape), int(s.step.item()), _in_bf16(s)) for s in shards}
        self._together(lambda: self._commit(temporary, point, content, files, parameters), temporary)
        return Saved(point, time.monotonic() - began, sum(file.size for file in files))

    def _together(self, work: Callable[[], Any], temporary: Path) -> list[Any]:
        """Do `work` on every rank and hear how it went on all of them: an error of one is everybody's."""
        value, error = None, None  # type: Any, Exception | None
        try:
            value = work()
        except Fenced as fenced:
            error = fenced
        except OSError as failure:
            error = SaveFailed(f"rank {self._runtime.rank}: {failure}")
        results = self._runtime.gather((value, error))
        first = next((error for _, error in results if error is not None), None)
        if first is not None:
            if self._runtime.leads:
                shutil.rmtree(temporary, ignore_errors=True)
            raise first
        return [value for value, _ in results]

    def _write(self, temporary: Path, shards: list[Shard]) -> File:
        index, count = self._engine.replicas
        ranges = []
        for shard in shards:
            start, stop = shard.part(index, count)
            if start < stop:
                inside = slice(start - shard.start, stop - shard.start)
                kinds = {kind: _numpy(kept[inside]) for kind, kept in shard.tensors.items()}
                ranges.append((shard.name, start, stop, kinds))
        return write_file(temporary / f"rank-{self._runtime.rank:04d}.safetensors", ranges, rng_state())

    def _commit(
        self, temporary: Path, point: Point, content: Content, files: list[File], parameters: dict[str, Parameter]
    ) -> None:
        """By rank 0 alone: the manifest last, then one rename."""
        if not self._runtime.leads:
            return
        if claims.fenced(self._runtime.run_dir, self._runtime.epoch):
            raise Fenced(f"attempt {self._runtime.epoch} is fenced: a later attempt owns the run")
        manifest = Manifest(
            version=VERSION,
            step=point.step,
            epoch=point.epoch,
            layout=content.layout,
            config=content.config,
            data=content.data,
            state=content.state,
            block=BLOCK,
            parameters=parameters,
            files=files,
        )
        write_manifest(temporary, manifest)
        temporary.rename(self.folder / folder_name(point))
        fsync_path(self.folder)

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


def _numpy(tensor: Tensor) -> Array:
    tensor = tensor.cpu()
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _in_bf16(shard: Shard) -> list[str]:
    return [kind for kind, kept in shard.tensors.items() if getattr(kept, "dtype", None) == torch.bfloat16]


def remove_leftovers(folder: Path, epoch: int) -> None:
    """Deletes trash, and what earlier epochs began to write and did not commit. Never a later epoch's: we may be the
    zombie."""
    for path in [*folder.glob(".trash-*"), *folder.glob(".tmp-*")]:
        written_by = re.search(r"-e(\d{4,})-", path.name)
        if written_by and int(written_by[1]) < epoch or path.name.startswith(".trash-"):
            shutil.rmtree(path, ignore_errors=True)
