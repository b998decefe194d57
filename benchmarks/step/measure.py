"""The optimizer step beside the peers', on equal math: the same weights, tokens, fused AdamW, clipping and rates.

Every contender is a process (or one a rank) with two torch threads (one at 0.13M, where two are no faster, and where
there are several ranks), all alive, of which one runs at a time: a gate before each step lets it go on for a few, round
by round in random order. Figures are 20th percentiles of steps from gate to gate, of the wall clock and of CPU seconds.
Everyone reads and tells its loss once a step: Outlast by its log and events.jsonl as in any run, HF Trainer with
logging_steps=1. Both run as they are by default, and compiled: Outlast where its own trial finds that it pays. The bare
loop is what an expert writes in plain PyTorch. A round of documents is one figure: useful tokens over its seconds.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks import peers
from benchmarks.rows import Row
from benchmarks.step import answers, packing, ranks, steps


def measure(quick: bool) -> list[Row]:
    absent = peers.install()
    with tempfile.TemporaryDirectory() as folder:
        return [row for part in (steps, packing, answers, ranks) for row in part.measure(Path(folder), quick, absent)]
