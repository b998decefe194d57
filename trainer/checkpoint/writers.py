"""One thread of each rank writes that rank's file; rank 0's commits when all have told it that theirs is durable.

They have a wire of their own, so that no step waits for a save, and no save for a step.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import msgspec

from durable import fsync_path, nonce
from trainer import claims
from trainer.checkpoint import Point, folder_name
from trainer.checkpoint.format import File, Manifest, write_file, write_manifest
from trainer.checkpoint.node_memory import NodeMemory
from trainer.runtime import Runtime
from trainer.stop.star import Star


class Fenced(Exception):
    """A later attempt has claimed the run: nothing was committed, and this attempt must leave."""


class SaveFailed(Exception):
    """No checkpoint came to be; the message names the rank and the error. The last one stands."""


class Word(msgspec.Struct):
    """What one writer tells another: how it went, and what came of it."""

    error: str | None = None
    fenced: bool = False
    folder: str = ""
    file: File | None = None
    size: int = 0


class Source(Protocol):
    """The file of one rank, to be written."""

    size: int

    def record(self, name: str, hashes: list[str]) -> File:
        """What the manifest says of it."""


class Writers:
    """This rank's among its peers; they make one checkpoint after the other."""

    def __init__(self, runtime: Runtime) -> None:
        """Collective."""
        self._runtime, self.folder, self.memory = runtime, runtime.run_dir / "checkpoints", NodeMemory(runtime)
        self._star = Star(runtime)

    def save(self, manifest: Manifest, source: Source, data: Iterator[memoryview]) -> int:
        """By every rank's thread. `manifest`: without the files. Returns the bytes of all ranks.

        Raises SaveFailed or Fenced, on every rank alike.
        """
        try:
            return self._save(manifest, source, data)
        except (SaveFailed, Fenced):
            raise
        except BaseException:
            self._star.close()  # an error of our own: no other rank is to wait for a word of this one
            raise

    def _save(self, manifest: Manifest, source: Source, data: Iterator[memoryview]) -> int:
        begun = self._from_leader(lambda: Word(folder=self._new_folder(manifest)))
        temporary = self.folder / begun.folder
        written = self._to_leader(self._attempt(lambda: Word(file=self._write(temporary, manifest, source, data))))
        return self._from_leader(lambda: self._commit(temporary, manifest, written)).size

    # --- what each does ---

    def _new_folder(self, manifest: Manifest) -> str:
        point = Point(manifest.step, manifest.epoch)
        temporary = self.folder / f".tmp-{folder_name(point).removeprefix('step-')}-{nonce()}"
        temporary.mkdir(parents=True)
        return temporary.name

    def _write(self, temporary: Path, manifest: Manifest, source: Source, data: Iterator[memoryview]) -> File:
        name = f"rank-{self._runtime.rank:04d}.safetensors"

        def record(hashes: list[str]) -> File:
            file = source.record(name, hashes)
            self.memory.keep(manifest, file)
            return file

        return write_file(temporary / name, data, source.size, record)

    def _commit(self, temporary: Path, manifest: Manifest, written: list[Word]) -> Word:
        """By rank 0 alone: the manifest last, then one rename."""
        committed = self.folder / folder_name(Point(manifest.step, manifest.epoch))
        try:
            if error := next((word.error for word in written if word.error), None):
                raise SaveFailed(error)
            if claims.fenced(self._runtime.run_dir, self._runtime.epoch):
                raise Fenced(f"attempt {self._runtime.epoch} is fenced: a later attempt owns the run")
            files = [word.file for word in written if word.file]
            write_manifest(temporary, msgspec.structs.replace(manifest, files=files))
            temporary.rename(committed)
            fsync_path(self.folder)
            fsync_path(self.folder.parent)  # in the first save the folder of all checkpoints is new, too
        except BaseException:
            with suppress(OSError):
                committed.rename(temporary)  # nobody knows whether its name is durable
            with suppress(OSError):  # what cannot be deleted now goes with the trash after a later save
                temporary = temporary.rename(temporary.with_name(temporary.name.replace(".tmp-", ".trash-")))
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        return Word(size=sum(file.size for file in files))

    # --- what they tell each other ---

    def _attempt(self, work: Callable[[], Word]) -> Word:
        try:
            return work()
        except (SaveFailed, Fenced) as error:
            return Word(error=str(error), fenced=isinstance(error, Fenced))
        except OSError as error:
            return Word(error=f"rank {self._runtime.rank}: {error}")

    def _to_leader(self, word: Word) -> list[Word]:
        """Every rank's word, in their order, on rank 0; nothing on the others."""
        if not self._runtime.leads:
            self._star.send_any(msgspec.json.encode(word))
            return []
        return [word, *(msgspec.json.decode(text, type=Word) for text in self._star.receive_any())]

    def _from_leader(self, work: Callable[[], Word]) -> Word:
        """What rank 0 comes to, on every rank. Raises SaveFailed or Fenced, on every rank alike."""
        if self._runtime.leads:
            word = self._attempt(work)
            self._star.send_any(msgspec.json.encode(word))
        else:
            word = msgspec.json.decode(self._star.receive_any()[0], type=Word)
        if word.error:
            raise (Fenced if word.fenced else SaveFailed)(word.error)
        return word
