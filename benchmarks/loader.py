"""How soon a batch is there: which sequences a step takes, however late, and their tokens from the page cache."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec
import numpy as np

from benchmarks.rows import Row
from trainer.data.batches import Batches
from trainer.data.mixture import Mixture
from trainer.data.packing import packed
from trainer.data.prepared import Manifest, Pool, Prepared
from trainer.layout import BatchLayout

STEPS = (10, 10**4, 10**6, 10**7)
BATCH = 1024  # sequences
WEIGHTS = {"domain": (0.9, 0.7), "general": (0.1, 0.3)}  # they change over the run
SEQ_LEN, MICRO, DOCUMENT = 4096, 8, 600  # tokens; sequences; tokens, on average
TOKENS = {"domain": 16_000_000, "general": 4_000_000}
SEEK, SPEED = 20, 100  # ms, M tokens/s
RUNS = 21


def measure(quick: bool) -> list[Row]:
    rows = []
    for step in STEPS:
        taken = 1000 * statistics.median(_seconds(partial(_seek, step + run)) for run in range(RUNS))
        name = f"the sequences of step {step:,}, two sources by weight"
        rows.append(Row(name, "ms", taken, goal=f"at most {SEEK} ms", met=taken <= SEEK))
    with tempfile.TemporaryDirectory() as folder:
        speed, cause = _speed(Path(folder), 5 if quick else RUNS)
    name = f"a loader, two sources by weight, T={SEQ_LEN}"
    return [*rows, Row(name, "M tokens/s", speed, goal=f"at least {SPEED}", met=speed >= SPEED, cause=cause)]


def _seek(step: int) -> None:
    """With what a resumed run has to make first."""
    sizes = {"domain": 10**9, "general": 10**7}
    Mixture(sizes, WEIGHTS, (STEPS[-1] + RUNS) * BATCH, 1, 0).ids(step * BATCH, BATCH)


def _speed(folder: Path, runs: int) -> tuple[float, str]:
    """M tokens/s of one rank's loader, reading one step after the other; and where its time went."""
    pool = Pool({name: _prepared(folder / name, tokens) for name, tokens in TOKENS.items()})
    layout = BatchLayout(MICRO, 2, 1)
    size = layout.global_batch_size
    mixture = Mixture(pool.sizes, WEIGHTS, 10**6, 1, 0)
    batches = Batches(pool, layout, 1, 0, lambda step: mixture.ids(step * size, size))
    steps = 20

    def read(first: int) -> None:
        for step in range(first, first + steps):
            batches.get(step)

    read(0)
    taken = statistics.median(_seconds(partial(read, run * steps)) for run in range(runs))
    calls: list[float] = []
    with mock.patch("os.preadv", _timed(os.preadv, calls)):
        read(0)
    each = steps * layout.gradient_accumulation_steps
    cause = (
        f"measured: {1e3 * taken / each:.2f} ms a micro batch, {1e3 * sum(calls) / each:.2f} of it in "
        f"{len(calls) / each:.0f} calls of preadv, two for each piece of a document"
    )
    return steps * size * SEQ_LEN / taken / 1e6, cause


def _timed(call: Callable[..., int], taken: list[float]) -> Callable[..., int]:
    def timed(*given: Any) -> int:
        began = time.perf_counter()
        done = call(*given)
        taken.append(time.perf_counter() - began)
        return done

    return timed


def _prepared(folder: Path, tokens: int) -> Prepared:
    """Documents of random tokens."""
    folder.mkdir()
    random = np.random.default_rng(0)
    starts = np.cumsum(random.integers(1, 2 * DOCUMENT, 2 * tokens // DOCUMENT)) - 1
    starts = np.concatenate([[0], starts[(starts > 0) & (starts < tokens)]])
    loss = np.ones(tokens, np.uint8)
    loss[starts] = 0
    pieces, packs = packed(starts, tokens, SEQ_LEN)
    arrays = {
        "tokens": random.integers(0, 1 << 15, tokens).astype(np.uint16),
        "loss": loss,
        "starts": starts.astype(np.int64),
        "pieces": pieces,
        "packs": packs,
    }
    for name, array in arrays.items():
        array.tofile(folder / f"{name}.bin")
    count, pairs = len(starts), int(pieces[:, 2].sum())
    manifest = Manifest(folder.name, 1, SEQ_LEN, "uint16", count, count, tokens, len(packs) - 1, len(pieces), pairs, {})
    (folder / "manifest.json").write_bytes(msgspec.json.encode(manifest))
    return Prepared.open(folder)


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
