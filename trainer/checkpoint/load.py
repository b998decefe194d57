"""Loading: the newest checkpoint that verifies, resharded by the intersection of intervals."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from durable import nonce
from settings import ConfigError
from trainer import claims
from trainer.checkpoint import CheckpointBroken, Point, folder_name, names
from trainer.checkpoint.format import Array, File, Manifest, Parameter, Piece, VerifiedFile, memory_of, read_manifest
from trainer.checkpoint.lineage import checkpoints_in_line
from trainer.engines.shard import Flat, Shard, checksum
from trainer.runtime import Runtime

Near = Callable[[File], Path | None]
"""Where a copy of a file lies that may be read in its place, until a block of it is wrong."""


class Reader:
    """A checkpoint whose manifest verified; what is read of its files is checked on the way."""

    def __init__(self, folder: Path, near: Near = lambda _: None) -> None:
        self.manifest: Manifest = read_manifest(folder)
        self._stack = ExitStack()
        self._files = [VerifiedFile(folder, file, self.manifest.block, near(file)) for file in self.manifest.files]
        for file in self._files:
            self._stack.callback(file.close)
        self._pieces: dict[str, list[tuple[VerifiedFile, Piece]]] = defaultdict(list)
        for file in self._files:
            for piece in file.record.pieces:
                self._pieces[piece.tensor].append((file, piece))

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def parameter(self, name: str, shape: Sequence[int]) -> Parameter:
        """What is known of a parameter of the model. Raises ConfigError: the manifest verified, so it is the model that
        differs."""
        saved = self.manifest.parameters.get(name)
        if saved is None or saved.shape != list(shape):
            was = f"shape {saved.shape}" if saved else "no such parameter"
            raise ConfigError(f"the model has {name} of shape {list(shape)}, the checkpoint has {was}")
        return saved

    def read(self, name: str, kind: str, start: int, stop: int) -> Array:
        """Elements [start, stop) of a flattened parameter, fp32. Raises CheckpointBroken."""
        out = np.empty(stop - start, np.float32)
        self.read_into(out, name, kind, start)
        return out

    def read_into(self, out: Array, name: str, kind: str, start: int) -> None:
        """As many elements from `start` on as `out`, fp32 and contiguous, has room for."""
        stop = start + len(out)
        bf16 = name in self.manifest.parameters and kind in self.manifest.parameters[name].bf16
        found = np.empty(len(out), np.uint16) if bf16 else out
        covered = 0
        for file, piece in self._pieces.get(name, ()):
            low, high = max(start, piece.start), min(stop, piece.stop)
            if low < high:
                first = piece.offsets[kind] + found.itemsize * (low - piece.start)
                file.read(first, memory_of(found[low - start : high - start]))
                covered += high - low
        if covered != stop - start:
            raise CheckpointBroken(f"{kind} of {name}: {covered:,} of elements {start:,} to {stop:,} are there")
        if bf16:
            np.left_shift(found, 16, out=out.view(np.uint32), dtype=np.uint32)

    def arrays(self, rank: int) -> dict[str, Array]:
        """What rank `rank` kept besides parameters: its RNG."""
        file = next(f for f in self._files if f.record.name == f"rank-{rank:04d}.safetensors")
        found = {}
        for name, (dtype, first, size) in file.record.arrays.items():
            found[name] = np.empty(size, dtype)
            file.read(first, memory_of(found[name]))
        return found

    def fill(self, shards: Iterable[Shard]) -> list[int]:
        """Copy what these shards hold out of the checkpoint. Returns the checksum of each one's weights, as they were
        read. Raises CheckpointBroken."""
        sums = []
        for shard in shards:
            saved = self.parameter(shard.name, shard.shape)
            for kind, kept in shard.tensors.items():
                place = _place(kept)
                values = torch.empty(shard.stop - shard.start) if place is None else place
                self.read_into(values.numpy(), shard.name, kind, shard.start)
                if place is None:
                    with torch.no_grad():
                        kept.copy_(values)
                if kind == "weights":
                    sums.append(int(checksum(values.to(getattr(kept, "dtype", values.dtype)))))
            shard.step.fill_(saved.step)
        return sums


@dataclass(frozen=True)
class Resumed:
    point: Point
    manifest: Manifest
    rng: dict[str, Array] | None
    """This rank's saved generators; None: the world size changed."""
    passed_over: list[str]
    """Newer checkpoints that did not verify, and why."""
    sums: list[int]
    """Of each shard's weights, as this rank has read them."""


def load_newest(
    runtime: Runtime, shards: Callable[[], Iterator[Shard]], check: Callable[[Manifest], None], near: Near
) -> Resumed | None:
    """Collective. Fill the shards from the newest checkpoint of the run's line that verifies; None: there is none yet.

    One that any rank finds broken is renamed to `.bad-...` and passed over. Raises ConfigError when checkpoints exist
    and none verifies, and what `check` (of the manifest, on every rank) raises.
    """
    folder = runtime.run_dir / "checkpoints"
    candidates = checkpoints_in_line(runtime.run_dir)
    passed_over: list[str] = []
    for point in runtime.from_leader(candidates):
        path, resumed, problem = folder / folder_name(point), None, None
        try:
            resumed = _load(runtime, path, point, shards, check, near, passed_over)
        except CheckpointBroken as error:
            problem = str(error)
        problems = [p for p in runtime.gather(problem) if p]
        if not problems:
            return resumed
        passed_over.append(f"{path.name}: {problems[0]}")
        if runtime.leads:
            path.rename(folder / f".bad-{path.name}-{nonce()}")
        runtime.barrier()
    if passed_over or runtime.from_leader(_existed(runtime.run_dir)):
        why = "; ".join(passed_over) or "they were found broken before, or are gone"
        raise ConfigError(
            f"{folder}: checkpoints exist and none can be used ({why}): "
            f"this run does not start again at step 0 by itself; restore one, or start a new run"
        )
    return None


def load_fork(runtime: Runtime, path: Path, shards: Callable[[], Iterator[Shard]]) -> Resumed:
    """Collective. Fill the shards from another run's checkpoint. Raises ConfigError when any rank finds it broken."""
    problem = None
    try:
        with Reader(path) as reader:
            sums = reader.fill(shards())
    except (CheckpointBroken, FileNotFoundError) as error:
        problem = str(error)
    problems = [p for p in runtime.gather(problem) if p]
    if problems:
        raise ConfigError(f"fork={path}: {problems[0]}: take another checkpoint: launch.py --fork RUN@STEP")
    return Resumed(Point(reader.manifest.step, reader.manifest.epoch), reader.manifest, None, [], sums)


def _place(kept: Flat) -> Tensor | None:
    """Where its values may be read to; None: only a copy brings them there."""
    if isinstance(kept, Tensor) and (kept.device.type, kept.dtype) == ("cpu", torch.float32) and kept.is_contiguous():
        return kept.detach()
    return None


def _existed(run_dir: Path) -> bool:
    """The run has had checkpoints, though none is a candidate now: found broken, without a manifest, or gone."""
    folder = run_dir / "checkpoints"
    left = any(name.startswith((".bad-", "step-")) for name in names(folder))
    return left or any(point.step for point in claims.resume_points(run_dir).values())


def _load(
    runtime: Runtime,
    path: Path,
    point: Point,
    shards: Callable[[], Iterator[Shard]],
    check: Callable[[Manifest], None],
    near: Near,
    passed_over: list[str],
) -> Resumed:
    with Reader(path, near) as reader:
        check(reader.manifest)
        sums = reader.fill(shards())
        same_world = len(reader.manifest.files) == runtime.world_size
        rng = reader.arrays(runtime.rank) if same_world else None
        return Resumed(point, reader.manifest, rng, passed_over, sums)
