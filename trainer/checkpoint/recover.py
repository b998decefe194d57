"""A save that all ranks had staged when they were cut: the next attempt on the same nodes finishes it."""

from __future__ import annotations

from trainer import claims
from trainer.checkpoint import Point
from trainer.checkpoint.format import File
from trainer.checkpoint.lineage import checkpoints_in_line, in_lineage
from trainer.checkpoint.writers import SaveFailed, Writers
from trainer.runtime import Runtime


class Copy:
    """What lies in the node's memory, as the file that it was to become."""

    def __init__(self, file: File) -> None:
        self._file, self.size = file, file.size

    def record(self, name: str, hashes: list[str]) -> File:
        if (name, hashes) != (self._file.name, self._file.hashes):
            raise SaveFailed(f"what was staged of {self._file.name} is not whole any more")
        return self._file


def finish_cut_save(runtime: Runtime, writers: Writers) -> str | None:
    """Collective. What came of it, in words; None: there was none to finish. Raises Fenced."""
    kept = writers.memory.newest()
    point = Point(kept.manifest.step, kept.manifest.epoch) if kept else None
    whole = len(set(runtime.gather(point))) == 1 and kept and kept.manifest.layout["world_size"] == runtime.world_size
    if not runtime.from_leader(point and whole and _is_new(runtime, point)):
        return None
    assert kept is not None
    try:
        writers.save(kept.manifest, Copy(kept.file), writers.memory.read(kept))
    except SaveFailed as error:
        return f"the save of step {kept.manifest.step} that was cut could not be finished: {error}"
    return f"finished the save of step {kept.manifest.step} that was cut, from what the nodes kept in memory"


def _is_new(runtime: Runtime, point: Point) -> bool:
    """It is of the run's line, and newer than what was committed."""
    line = checkpoints_in_line(runtime.run_dir)
    return bool(in_lineage([point], claims.resume_points(runtime.run_dir))) and point > max(line, default=Point(0, 0))
