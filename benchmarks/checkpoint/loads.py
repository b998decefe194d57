"""How fast a checkpoint is read and verified at a resume, beside the disk or the page cache that it comes from."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median

from benchmarks.checkpoint.place import EVERY, save_once
from benchmarks.rows import Row
from benchmarks.step.place import Shape, inputs, recipe, write_run, write_settings
from benchmarks.step.race import Racer

WORLD = 2
GOAL = 0.8
CHUNK = 16 << 20


def measure(work: Path, quick: bool, absent: dict[str, str]) -> Iterator[Row]:
    """fsdp: each rank reads its half. The ranks and the readers meet the same page cache, and at the same age: a
    virtual machine may give memory back that is free for seconds, and the first touch of a page is slow then."""
    shape = Shape("10M", 320, 6, 4096, 1, 256) if quick else Shape("110M", 768, 12, 16_384, 1, 512)
    print(f"  loads, {shape.name}", flush=True)
    folder = work / "loads"
    data = inputs(shape, 4 * EVERY * WORLD, folder / "data")
    tree = recipe(data, shape.length, WORLD, "master32", engine={"kind": "fsdp"}, checkpoint={"every": EVERY})
    config = write_run(folder / "outlast", tree)
    argv = [sys.executable, "-m", "benchmarks.step.rank", str(config)]
    racer = lambda: Racer("Outlast", argv, folder / "outlast.log", WORLD, threads=1)  # noqa: E731
    checkpoint = save_once(racer(), config.parent)
    write_settings(folder / "raw", data, 1, bf16=True, read=str(checkpoint))
    raw = [sys.executable, "-m", "benchmarks.checkpoint.limits", str(folder / "raw")]
    size = sum(path.stat().st_size for path in checkpoint.iterdir())
    with Racer("raw read", raw, folder / "raw.log", WORLD, threads=1) as reader:
        reader.ready()
        reader.run(1)
        for name, prepare in STATES.items():
            loads, reads = [], []
            for _ in range(2 if quick else 5):
                prepare(checkpoint)
                began = time.monotonic()
                loads.append(loaded(racer()))
                prepare(checkpoint)
                time.sleep(time.monotonic() - began)
                reads.append(reader.run(1)[0].values["read"])
            title = f"{shape.name}: resume at {WORLD} ranks, {name}"
            yield row(title, size, median(loads), median(reads), hashing(size // WORLD))


def loaded(racer: Racer) -> float:
    """Seconds of rank 0, which ends with the last one: the ranks tell each other whether all is whole."""
    with racer:
        racer.ready()
        [step] = racer.run(1)
    return step.values["load"]


def hashing(size: int) -> float:
    """Seconds that one thread takes to hash so many bytes as a checkpoint's blocks are."""
    import xxhash

    from trainer.checkpoint.format import BLOCK

    blocks = [os.urandom(BLOCK) for _ in range(256)]  # more than a cache holds
    began = time.perf_counter()
    for block in blocks:
        xxhash.xxh3_64(block).hexdigest()
    return (time.perf_counter() - began) * size / (len(blocks) * BLOCK)


def forget(checkpoint: Path) -> None:
    """Its files leave the page cache."""
    os.sync()
    for path in checkpoint.iterdir():
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def remember(checkpoint: Path) -> None:
    """Its files are in the page cache."""
    for path in checkpoint.iterdir():
        with open(path, "rb", buffering=0) as file:
            while file.read(CHUNK):
                pass


STATES: dict[str, Callable[[Path], None]] = {"from the disk": forget, "from the page cache": remember}


def row(name: str, size: int, load: float, read: float, hashed: float) -> Row:
    mine, raw = (size / seconds / 1e9 for seconds in (load, read))
    cause = f"measured, s: {load:.3g} for all; {read:.3g} to read as much, {hashed:.3g} to hash it in memory"
    out = Row(name, "GB/s", mine, limit_name="raw read", limit=raw, cause=cause)
    return replace(out, goal=f"at least {GOAL:g} of it", met=mine >= GOAL * raw)
