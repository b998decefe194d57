"""How long a run waits for its next job behind a backlog: four ways of going on, beside each other in one queue.

A pocket cluster with multifactor priority, of age alone, which is counted anew every minute (by default five). Others
keep 50 jobs waiting, each of which takes a whole node for a few seconds; four runs, one of each way, want a node as
often. The figure is the median time from the end of a run's job to the start of its next one; the array is what
`--continue-by auto` takes here. A requeue waits 6 s before Slurm looks at it, on a stock Slurm 121 s.
"""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from benchmarks.backlog.accounting import multifactor
from benchmarks.processes import Unable
from benchmarks.rows import Row
from envs.pocket import Pocket, up

BACKLOG = 50
SECONDS = 4  # of a job
ARRAY = "array"
OTHERS = ("chain", "singleton", "requeue")
WAYS = (ARRAY, *OTHERS)
PATIENCE = 3600.0  # seconds


def measure(quick: bool) -> list[Row]:
    """A row for each other way beside the array's."""
    row = Row(f"wait behind {BACKLOG} jobs", "s", goal="an array waits least")
    try:
        waits = {way: statistics.median(found) for way, found in compare(2 if quick else 5).items()}
    except Unable as error:
        return [replace(row, cause=str(error))]
    ours = waits[ARRAY]
    return [
        replace(row, outlast=ours, peer_name=way, peer=waits[way], ratio=waits[way] / ours, met=ours <= waits[way])
        for way in OTHERS
    ]


def compare(waits: int) -> dict[str, list[float]]:
    """Seconds between a run's jobs, of each way: at least so many."""
    pocket = up("pocket-backlog", nodes=2, gpus=0)
    try:
        with tempfile.TemporaryDirectory() as name, multifactor(pocket), backlog(pocket):
            folder = Path(name)
            for way in WAYS:
                submit(pocket, folder, way)
            end = time.monotonic() + PATIENCE
            while any(len(gaps(folder / way)) < waits for way in WAYS):
                assert time.monotonic() < end, {way: gaps(folder / way) for way in WAYS}
                time.sleep(0.5)
            return {way: gaps(folder / way) for way in WAYS}
    finally:
        pocket.down()


@contextmanager
def backlog(pocket: Pocket) -> Iterator[None]:
    """Others, who always have so many jobs waiting."""
    over = threading.Event()

    def keep() -> None:
        while not over.is_set():
            waiting = pocket.ask("squeue", "--noheader", "--states=PENDING", "--name=other", "--format=%i").split()
            for _ in range(BACKLOG - len(waiting)):
                submit_other(pocket)
            over.wait(0.5)

    for _ in range(BACKLOG + 2):
        submit_other(pocket)
    thread = threading.Thread(target=keep)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def submit_other(pocket: Pocket) -> None:
    wrap = f"--wrap=sleep {SECONDS}"
    pocket.ask("sbatch", "--job-name=other", "--exclusive", "--nodes=1", "--output=/dev/null", wrap)


def submit(pocket: Pocket, folder: Path, way: str) -> None:
    """A run's first job, or all of them where the way wants that; each notes its start and its end."""
    script, log = folder / f"{way}.sh", folder / way
    common = f"sbatch --job-name={way} --exclusive --nodes=1 --output=/dev/null"
    before, after, flags, times = "", "", [], 1
    match way:
        case "chain":
            before = f"{common} --dependency=afterany:$SLURM_JOB_ID {script}"
        case "requeue":
            after = "scontrol requeue $SLURM_JOB_ID"
        case "singleton":
            flags, times = ["--dependency=singleton"], 20
        case _:
            flags = ["--array=1-1000%1"]
    note = f"date +'%s.%N start' >> {log}", f"date +'%s.%N end' >> {log}"
    script.write_text("\n".join(["#!/bin/sh", note[0], before, f"sleep {SECONDS}", note[1], after, ""]))
    for _ in range(times):
        pocket.ask(*common.split(), *flags, str(script))


def gaps(log: Path) -> list[float]:
    """Seconds from each end of a run's job to the next one's start."""
    lines = log.read_text().splitlines() if log.exists() else []
    moments = [float(line.split()[0]) for line in lines]
    return [start - end for end, start in zip(moments[1::2], moments[2::2], strict=False)]
