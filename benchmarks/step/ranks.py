"""Two and four ranks on one machine by gloo, a thread a rank: Outlast's engines beside accelerate and DeepSpeed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import peers
from benchmarks.rows import Row
from benchmarks.step.figures import others_row, time_rows
from benchmarks.step.place import Shape, inputs, recipe, write_run, write_settings
from benchmarks.step.race import Racer, Ran, most, race

SCRIPTS = Path(__file__).parent / "peers"
SHAPE = Shape("33M", 512, 8, 8192, 1, 256)
WARM, STEPS = 2, 6
ZERO: dict[str, Any] = {
    "bf16": {"enabled": True},
    "zero_optimization": {"stage": 2},
    "zero_allow_untested_optimizer": True,
    "steps_per_print": 10**9,
}
ENGINES: dict[str, dict[str, Any]] = {
    "fsdp": {"kind": "fsdp"},
    "ZeRO 2": {"kind": "deepspeed", "config": ZERO},
    "ddp": {"kind": "ddp"},
}
FSDP2, DEEPSPEED = "accelerate FSDP2", "DeepSpeed ZeRO 2"
RACES = ((("fsdp",), FSDP2), (("ZeRO 2", "ddp"), DEEPSPEED))
"""Engines of Outlast's, and the peer that is alive beside them."""
GOAL = 1.0


def measure(work: Path, quick: bool, absent: dict[str, str]) -> Iterator[Row]:
    rounds = 2 if quick else 3
    data = inputs(SHAPE, most(WARM, rounds, STEPS) * SHAPE.rows * 4, work / "ranks")
    for world in (2, 4):
        for engines, peer in RACES:
            print(f"  {world} ranks, {', '.join(engines)}", flush=True)
            ran = run(data, work / f"{world}-ranks", world, rounds, engines, peer, absent)
            for engine in engines:
                name = f"{SHAPE.name} bf16, {world} ranks, {engine}"
                yield from time_rows(name, ran[engine], peer, ran[peer], GOAL)
            yield others_row(f"{SHAPE.name} bf16, {world} ranks, {', '.join(engines)}", ran.values())


def run(
    data: Path, folder: Path, world: int, rounds: int, engines: tuple[str, ...], peer: str, absent: dict[str, str]
) -> dict[str, Ran]:
    racers = []
    for engine in engines:
        tree = recipe(data, SHAPE.length, SHAPE.rows * world, "master32", engine=ENGINES[engine])
        config = write_run(folder / engine.replace(" ", "-"), tree)
        argv = [sys.executable, "-m", "benchmarks.step.rank", str(config)]
        racers.append(Racer(engine, argv, config.with_name("log"), world, threads=1))
    given = folder / peer.replace(" ", "-")
    write_settings(given, data, SHAPE.rows, bf16=True, deepspeed=ZERO)
    # DeepSpeed comes with Outlast's own extra; it is none of the peers' packages.
    python, script = (
        (str(peers.BIN / "python"), "accelerate_fsdp.py") if peer == FSDP2 else (sys.executable, "deepspeed_loop.py")
    )
    if peer != FSDP2 or "accelerate" not in absent:
        racers.append(Racer(peer, [python, str(SCRIPTS / script), str(given)], given / "log", world, threads=1))
    return {peer: Ran(words=absent.get("accelerate", ""))} | race(racers, WARM, rounds, STEPS)
