"""From a stop signal to the checkpoint that it asks for: Outlast beside HF Trainer's just-in-time checkpoint."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median

from benchmarks.processes import Unable
from benchmarks.rows import Row
from benchmarks.stops.rank import EVALUATED_EVERY, WORLD
from benchmarks.stops.runs import POLL, Contender, Outlast, Transformers, steps_done

PEER = "HF Trainer, JIT checkpoint"
SOONER = 3.0
PATIENCE = 60.0
"""Seconds until the steps begin."""
GRACE = 15.0
"""Seconds after the signal in which a checkpoint may come to be; ranks that disagree wait for each other for ever."""


def measure(work: Path, quick: bool, absent: dict[str, str]) -> Iterator[Row]:
    print("  stop", flush=True)
    contenders: dict[str, Contender] = {"outlast": Outlast(work / "stop" / "inputs")}
    if "transformers" not in absent:
        contenders[PEER] = Transformers()
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(3 if quick else 10):
        chance = random.Random(number)
        step, phase = chance.randrange(3, EVALUATED_EVERY - 2), chance.uniform(0, 0.1)
        for name, contender in contenders.items():
            folder = work / "stop" / "run"
            found[name] += stopped(contender, folder, step, phase)
            shutil.rmtree(folder)
    yield row(found["outlast"], found.get(PEER, []), absent.get("transformers", ""))


def stopped(contender: Contender, folder: Path, step: int, phase: float) -> list[float]:
    """Seconds from the signal, `phase` seconds after the end of a step, to its checkpoint; nothing: there is none."""
    folder.mkdir()
    contender.write(folder)
    with contender.ranks(folder) as ranks:
        while steps_done(folder) < step:
            if ranks.wait(time.monotonic() + POLL) or time.monotonic() > ranks.began + PATIENCE:
                raise Unable(f"{contender.name}: no step {step}: {log(folder)}")
        time.sleep(phase)
        signalled = time.time()
        ranks.signal(range(WORLD))
        ranks.wait(time.monotonic() + GRACE)
    return [at - signalled for at in durable(contender, folder)]


def durable(contender: Contender, folder: Path) -> list[float]:
    """When the checkpoint stood, unix seconds. HF Trainer's: when the last of its files was written, and the mark was
    removed that says that it is not whole; none is synced."""
    if contender.name == "outlast":
        from trainer.records import events

        return [event["time"] for event in events.read(folder) if event["event"] == "save"][-1:]
    found = sorted(folder.glob("checkpoints/checkpoint-*"), key=lambda path: path.stat().st_mtime)[-1:]
    return [max(path.stat().st_mtime for path in (last, *last.iterdir())) for last in found]


def log(folder: Path) -> str:
    return (folder / "rank-0.log").read_text(errors="replace")[-300:]


def row(ours: list[float], theirs: list[float], absent: str) -> Row:
    mine, other = (median(found) if found else None for found in (ours, theirs))
    name = f"signal to durable checkpoint, {WORLD} ranks"
    out = Row(name, "s", mine, PEER, other, goal=f"at least {SOONER:g} s sooner", cause=absent)
    if mine is None or other is None:
        return out
    cause = f"measured: {other - mine:.2f} s sooner; ours from {min(ours):.2f} to {max(ours):.2f} s, "
    cause += f"theirs from {min(theirs):.2f} to {max(theirs):.2f}"
    return replace(out, ratio=other / mine, met=other - mine >= SOONER, cause=cause)
