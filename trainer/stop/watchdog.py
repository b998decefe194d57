"""The hang watchdog: a thread in every rank that sees how long ago the loop gave a sign of life.

A rank for which that is too long writes the stacks of all its threads to its file, and with it how many collectives it
has begun in each process group. The others are as silent, since they wait for it; a file tells them, and all wait for
each other's stacks: a launcher kills the rest as soon as one has left. Then all leave with 86.
"""

from __future__ import annotations

import faulthandler
import json
import math
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from durable import write_atomic
from trainer import exits, schema
from trainer.records.events import Events
from trainer.runtime import Runtime

TICK = 1.0  # seconds between two looks
SUSPECT = 0.5  # share of a step's shortest limit, from which on another rank's word is looked for
STACKS_SECONDS = 10.0  # for the others' stacks
LAST_RESORT = 30.0  # seconds beyond the limit, when even this thread does not run: something holds the interpreter


class Watchdog:
    """A context: what hangs inside ends the process."""

    def __init__(self, settings: schema.Watchdog, runtime: Runtime, step_seconds: Callable[[], float]) -> None:
        self._settings, self._runtime, self._step_seconds = settings, runtime, step_seconds
        self._folder = runtime.run_dir / "logs" / f"attempt-{runtime.epoch:04d}"
        self._over, self._found = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self.enter("start")

    def enter(self, phase: str) -> None:
        """A new phase, with a limit of its own."""
        self.phase = phase
        self.alive()

    def alive(self) -> None:
        """A sign of life: the phase's clock starts anew."""
        self._since = time.monotonic()

    def __enter__(self) -> Watchdog:
        if self._settings.factor:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._arm_last_resort(self.limit())
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._found.is_set():  # an error that a peer's end has caused is not how this rank ends
            self._thread.join()
        self._over.set()
        faulthandler.cancel_dump_traceback_later()

    @property
    def save_seconds(self) -> float:
        """Seconds that a save may take."""
        return self._settings.save_seconds if self._settings.factor else math.inf

    def limit(self) -> float:
        """Seconds that the phase may take."""
        settings = self._settings
        match self.phase:
            case "step":
                return max(settings.step_seconds, settings.factor * self._step_seconds())
            case "evaluation":
                return settings.evaluation_seconds
            case "save":
                return settings.save_seconds
        return settings.start_seconds

    # --- the thread ---

    def _watch(self) -> None:
        word = self._folder / "hang"
        while not self._over.wait(TICK):
            limit, silent = self.limit(), time.monotonic() - self._since
            if silent > limit or silent > SUSPECT * self._settings.step_seconds and word.exists():
                self._found.set()
                self._leave(word, limit, silent)
            self._arm_last_resort(limit)

    def _arm_last_resort(self, limit: float) -> None:
        """A thread of C that writes the stacks to this rank's log and ends it, unless it is armed anew before."""
        faulthandler.dump_traceback_later(limit + LAST_RESORT, exit=True)

    def _leave(self, word: Path, limit: float, silent: float) -> None:
        what = f"no sign of life for {silent:.0f} s in the phase {self.phase} (limit {limit:.0f} s)"
        print(
            f"outlast: rank {self._runtime.rank} hangs: {what}; stacks in {self._folder}", file=sys.stderr, flush=True
        )
        try:
            write_atomic(word, f"rank {self._runtime.rank}: {what}\n")
            self._write_stacks(what)
            self._wait_for_stacks()
            self._tell(silent)
        except Exception:  # neither a file system that fails nor a bug of ours may keep this rank here
            traceback.print_exc()
        os._exit(exits.HANG)

    def _write_stacks(self, what: str) -> None:
        target = self._stacks(self._runtime.rank)
        temporary = target.with_name(f".{target.name}")
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(f"rank {self._runtime.rank} on {os.uname().nodename}: {what}\n")
            file.write(f"collectives: {json.dumps(collectives_begun())}\n\n")
            file.flush()
            faulthandler.dump_traceback(file)
        temporary.rename(target)

    def _wait_for_stacks(self) -> None:
        end = time.monotonic() + STACKS_SECONDS
        while time.monotonic() < end and len(self._written()) < self._runtime.world_size:
            time.sleep(0.05)

    def _written(self) -> list[int]:
        """Ranks whose stacks are there."""
        return [rank for rank in range(self._runtime.world_size) if self._stacks(rank).exists()]

    def _stacks(self, rank: int) -> Path:
        return self._folder / f"rank-{rank:04d}.stacks"

    def _tell(self, silent: float) -> None:
        """By the first rank that left stacks: rank 0 may be the one that hangs."""
        written = self._written()
        if self._runtime.rank != min(written):
            return
        missing = [rank for rank in range(self._runtime.world_size) if rank not in written]
        behind = ranks_behind({rank: read_begun(self._stacks(rank)) for rank in written})
        named = "; ".join(
            f"{what} {', '.join(map(str, ranks))}"
            for what, ranks in (("no stacks of ranks", missing), ("fewer collectives than others: ranks", behind))
            if ranks
        )
        print(f"outlast: {named or 'all ranks have begun the same collectives'}", file=sys.stderr, flush=True)
        values = {"phase": self.phase, "seconds": silent, "missing": missing, "behind": behind}
        Events(self._runtime.run_dir, self._runtime.epoch, active=True).write("hang", **values)


# --- what torch's flight recorder knows -------------------------------------------------------------------


def collectives_begun() -> dict[str, int]:
    """Number of the last collective that this rank has begun in each process group, by the group's name."""
    begun: dict[str, int] = {}
    for entry in _recorded():
        name = "/".join(entry["process_group"])
        begun[name] = max(begun.get(name, 0), entry["collective_seq_id"])
    return begun


def _recorded() -> list[dict[str, Any]]:
    """Gloo's collectives and NCCL's are in recorders of their own; torch has no public name for either."""
    entries = []
    for name in ("_dump_fr_trace_json", "_dump_nccl_trace_json"):
        with suppress(AttributeError, ValueError):
            dump = getattr(torch._C._distributed_c10d, name)
            told = json.loads(dump(includeCollectives=True, onlyActive=False))
            entries += told.get("entries", [])  # torch 2.14 leaves it out where nothing was recorded
    return entries


def read_begun(stacks: Path) -> dict[str, int]:
    """The counts in a rank's file of stacks."""
    line = stacks.read_text(encoding="utf-8").splitlines()[1]
    return dict(json.loads(line.removeprefix("collectives: ")))


def ranks_behind(begun: dict[int, dict[str, int]]) -> list[int]:
    """Ranks that have begun fewer collectives than another one in a group that both know: the others wait for them."""
    most: dict[str, int] = {}
    for counts in begun.values():
        most = {group: max(most.get(group, 0), counts.get(group, 0)) for group in {*most, *counts}}
    return [rank for rank, counts in begun.items() if any(count < most[group] for group, count in counts.items())]
