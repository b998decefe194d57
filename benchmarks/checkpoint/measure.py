"""Checkpoints beside the peers': what a save costs the training, how soon it is durable, how soon a run goes on.

Saves: every contender trains the same Llama behind the gate of the benchmark `step`, ten steps a round, and saves in
the first one that counts. `stall` is by how much that step exceeds the usual one outside the model and AdamW, where all
of them save; `slower` the sum by which the four after it do as a whole, during which the save is written; usual is the
median of those that are left (the 20th percentile would put every step's noise into the sum). Once torch computes on
every core, and once a core is left free, as on a node that trains on GPUs. Durable: from the save's begin to its files'
fsync, and in Outlast's case the rename of its folder and the folder's own fsync, by its events.jsonl; DCP syncs its
files and no folder, torch.save and HF Trainer nothing, so that theirs are synced for them, which is in no stall.
Limits: a copy of as many bytes to memory that is there already, by as many threads, and their write and fsync in one
piece while nobody trains. Outlast stages into the node's memory, as under its launcher.

Stop: the ranks of the benchmark `stops` get a SIGTERM each between two saves; the clock ends when all of the checkpoint
is there, Outlast's durable. Start: from the process's start to the end of the first step after a resume. Load: what two
ranks take to read and verify their halves of a checkpoint, beside two processes that read as many bytes into memory.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from benchmarks import peers
from benchmarks.checkpoint import loads, saves, starts, stop
from benchmarks.rows import Row

WORK = Path(__file__).parent.parent / ".checkpoint"
"""On the disk of the checkout, since /tmp may be memory. Ignored by git."""


def measure(quick: bool) -> list[Row]:
    absent = peers.install()
    shutil.rmtree(WORK, ignore_errors=True)
    rows = [row for part in (saves, stop, starts, loads) for row in part.measure(WORK, quick, absent)]
    shutil.rmtree(WORK)  # what a contender has left that did not run tells why
    return rows
