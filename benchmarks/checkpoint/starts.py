"""From a process's start to the end of its first step after a resume: seconds, and file-system calls."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median

from benchmarks import peers, processes
from benchmarks.checkpoint.place import EVERY, save_once
from benchmarks.processes import Command
from benchmarks.rows import Row
from benchmarks.step.place import Shape, inputs, recipe, write_run, write_settings
from benchmarks.step.race import Racer

SCRIPT = Path(__file__).parent.parent / "step" / "peers" / "hf_trainer.py"
SHAPE = Shape("5M", 256, 4, 4096, 8, 256)
OURS, PEER, TORCH = "outlast", "HF Trainer", "import torch"
IMPORT: Command = [sys.executable, "-c", "import torch"]
SECONDS, CALLS = 2.2, 30_000
"""Goals."""


def measure(work: Path, quick: bool, absent: dict[str, str]) -> Iterator[Row]:
    print("  starts", flush=True)
    folder = work / "starts"
    data = inputs(SHAPE, 4 * EVERY * SHAPE.rows, folder / "data")
    words = absent.get("transformers", "")
    commands = {OURS: ours(folder, data)} | ({} if words else {PEER: theirs(folder, data)})
    log, steps = folder / "log", dict.fromkeys(commands, 0.0)
    found: dict[str, list[float]] = {name: [] for name in (*commands, TORCH)}
    for number in range(-1, 3 if quick else 9):  # a first round warms the page cache
        for name in random.Random(number).sample(list(found), len(found)):
            began = time.perf_counter()
            if name == TORCH:
                subprocess.run(IMPORT, check=True)
            else:
                steps[name] = started(Racer(name, commands[name], log))
            if number >= 0:
                found[name].append(time.perf_counter() - began)
    yield from time_rows({name: median(taken) for name, taken in found.items()}, steps, words)
    untraced = processes.cannot_trace()
    calls = {} if untraced else {name: file_calls(Racer(name, argv, log), folder) for name, argv in commands.items()}
    yield from calls_rows(calls, 0 if untraced else processes.file_calls(IMPORT), untraced or words)


def ours(folder: Path, data: Path) -> Command:
    """A run that has a checkpoint."""
    tree = recipe(data, SHAPE.length, SHAPE.rows, "master32", checkpoint={"every": EVERY})
    config = write_run(folder / OURS, tree)
    argv = [sys.executable, "-m", "benchmarks.step.rank", str(config)]
    save_once(Racer(OURS, argv, folder / "saving.log"), config.parent)
    return argv


def theirs(folder: Path, data: Path) -> Command:
    saving, resumed = folder / "saving", folder / "resumed"
    argv = [str(peers.BIN / "python"), str(SCRIPT)]
    write_settings(saving, data, SHAPE.rows, bf16=True, save_every=EVERY)
    with Racer(PEER, [*argv, str(saving)], folder / "saving.log") as racer:
        racer.ready()
        racer.run(EVERY)
    write_settings(resumed, data, SHAPE.rows, bf16=True, resume=str(saving / "trainer" / f"checkpoint-{EVERY}"))
    return [*argv, str(resumed)]


def started(racer: Racer) -> float:
    """Start it and let it take its first step, whose seconds come back."""
    with racer:
        racer.ready()
        [step] = racer.run(1)
    return step.wall


def file_calls(racer: Racer, folder: Path) -> int:
    """Of its whole process, from exec to the end of the first step."""
    summary = folder / "calls"
    racer.argv = [*processes.tracer(str(summary)), *racer.argv]
    with racer:
        racer.ready()
        racer.run(1)
        racer.leave()
    return processes.traced(summary.read_text())


# --- rows -----------------------------------------------------------------------------------------------------


def time_rows(seconds: dict[str, float], steps: dict[str, float], words: str) -> Iterator[Row]:
    mine, torch, other = seconds[OURS], seconds[TORCH], seconds.get(PEER)
    cause = f"measured: {torch:.2f} s are torch's import, {steps[OURS]:.2f} s the step"
    name = f"{SHAPE.name}: start to the first step after a resume"
    row = Row(name, "s", mine, limit_name=TORCH, limit=torch, cause=cause)
    yield replace(row, goal=f"at most {SECONDS:g} s", met=mine <= SECONDS)
    ratio, goal = (other / mine, "") if other is not None else (None, "to run")
    yield Row(name, "s", mine, PEER, other, ratio=ratio, goal=goal, cause=words)


def calls_rows(calls: dict[str, int], torch: int, words: str) -> Iterator[Row]:
    name = f"{SHAPE.name}: file-system calls of that"
    mine, other = calls.get(OURS), calls.get(PEER)
    row = Row(name, "", mine, PEER, other, TORCH if calls else "", torch or None, cause=words)
    if mine is not None:
        row = replace(row, ratio=other / mine if other else None, met=mine <= CALLS)
        row = replace(row, cause=f"measured: {torch:,} are torch's import")
    yield replace(row, goal=f"at most {CALLS:,}")
