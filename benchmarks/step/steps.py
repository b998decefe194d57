"""One process a contender: the optimizer step of four Llamas by Outlast's whole loop, its peers', and a bare one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import peers
from benchmarks.processes import Unable, last_line
from benchmarks.rows import Row
from benchmarks.step.figures import apart, loss_row, losses, milliseconds, others_row, time_rows, wall
from benchmarks.step.place import Shape, inputs, recipe, write_run, write_settings
from benchmarks.step.race import THREADS, Racer, Ran, Step, most, race

SCRIPTS = Path(__file__).parent / "peers"
OURS, AUTO, BOARD = "Outlast", "Outlast, compile: auto", "Outlast with TensorBoard"
TRAINER, TRAINER_COMPILED, SELDOM = "HF Trainer", "HF Trainer, torch_compile", "HF Trainer, a log every 500"
BARE = "bare loop"
PEERS: dict[str, tuple[str, str]] = {
    TRAINER: ("hf_trainer.py", "transformers"),
    BARE: ("bare_loop.py", "torch"),
    "Lightning": ("lightning_fit.py", "lightning"),
    "accelerate loop": ("accelerate_loop.py", "accelerate"),
}
"""Their scripts, and the packages that these need."""

COMPARED = 20
"""Steps whose losses are compared."""
LOGGED = 0.3
"""ms that the log, the events and TensorBoard may take of a step."""


@dataclass(frozen=True)
class Heat:
    """A race of one shape in one precision."""

    shape: Shape
    precision: str
    warm: int
    """Steps before the first round."""
    rounds: int
    steps: int
    """Of a round."""
    goals: tuple[float, float]
    """Times ahead of HF Trainer, and of the bare loop."""
    small: bool = False
    """What is around the model shows here alone, and no second thread pays."""

    @property
    def threads(self) -> int:
        return 1 if self.small else THREADS

    @property
    def name(self) -> str:
        return f"{self.shape.name} {'fp32' if self.precision == 'fp32' else 'bf16'}"


def heats(quick: bool) -> list[Heat]:
    tiny, five = Shape("0.13M", 64, 2, 300, 2, 32), Shape("5M", 256, 4, 4096, 8, 256)
    return [
        Heat(tiny, "master32", 5, 5 if quick else 20, 30, (1.30, 0.90), small=True),
        Heat(five, "master32", 5, 3 if quick else 6, 5, (1.15, 0.97)),
        Heat(five, "fp32", 5, 3 if quick else 6, 5, (1.15, 0.97)),
        Heat(Shape("33M", 512, 8, 8192, 4, 512), "master32", *((1, 3, 3) if quick else (5, 5, 6)), (1.03, 0.97)),
        Heat(Shape("110M", 768, 12, 16_384, 1, 512), "master32", *((1, 3, 2) if quick else (2, 4, 3)), (1.00, 0.97)),
    ]


def measure(work: Path, quick: bool, absent: dict[str, str]) -> Iterator[Row]:
    for heat in heats(quick):
        print(f"  {heat.name}", flush=True)
        folder = work / heat.name.replace(" ", "-")
        ran = run(heat, folder, absent)
        if words := ran[OURS].words or ran[AUTO].words:
            raise Unable(words)
        yield from rows(heat, ran)
        if heat.small:
            yield reads_row(heat, folder)


def run(heat: Heat, folder: Path, absent: dict[str, str]) -> dict[str, Ran]:
    shape = heat.shape
    data = inputs(shape, most(heat.warm, heat.rounds, heat.steps) * shape.rows, folder / "data")
    tree = recipe(data, shape.length, shape.rows, heat.precision)
    auto = tree | {"train": {**tree["train"], "compile": "auto"}}
    racers = [_ours(OURS, folder / "outlast", tree, heat), _ours(AUTO, folder / "auto", auto, heat)]
    if heat.small:
        racers.append(_ours(BOARD, folder / "board", tree | {"tensorboard": True}, heat))
    for name, (script, package) in PEERS.items():
        if package not in absent:
            racers.append(_theirs(name, script, folder / script, data, heat))
    if "transformers" not in absent:
        script = PEERS[TRAINER][0]
        racers.append(_theirs(TRAINER_COMPILED, script, folder / "compiled", data, heat, compiled=True))
        if heat.small:
            racers.append(_theirs(SELDOM, script, folder / "seldom", data, heat, logged_every=500))
    ran = race(racers, heat.warm, heat.rounds, heat.steps)
    missing = {name: Ran(words=absent[package]) for name, (_, package) in PEERS.items() if package in absent}
    return ran | missing


def _ours(name: str, folder: Path, tree: dict[str, object], heat: Heat) -> Racer:
    argv = [sys.executable, "-m", "benchmarks.step.rank", str(write_run(folder, tree))]
    return Racer(name, argv, folder / "log", threads=heat.threads)


def _theirs(name: str, script: str, folder: Path, data: Path, heat: Heat, **more: object) -> Racer:
    write_settings(folder, data, heat.shape.rows, heat.precision != "fp32", **more)
    return Racer(
        name, [str(peers.BIN / "python"), str(SCRIPTS / script), str(folder)], folder / "log", threads=heat.threads
    )


def rows(heat: Heat, ran: dict[str, Ran]) -> Iterator[Row]:
    goals = dict(zip((TRAINER, BARE), heat.goals, strict=True))
    for peer in PEERS:
        bare = None if peer == BARE else ran[BARE]
        yield from time_rows(heat.name, ran[OURS], peer, ran[peer], goals.get(peer), bare)
    for peer in (TRAINER, TRAINER_COMPILED):
        if peer in ran:
            goal = goals.get(peer)
            yield from time_rows(f"{heat.name}, compile: auto", ran[AUTO], peer, ran[peer], goal, ran[BARE])
    yield others_row(heat.name, ran.values())
    if heat.small:
        yield from small_rows(heat, ran)
    if heat.precision == "fp32" and not ran[BARE].words:
        yield from agreement(heat, ran)


def small_rows(heat: Heat, ran: dict[str, Ran]) -> Iterator[Row]:
    if SELDOM in ran:
        yield time_rows(heat.name, ran[OURS], SELDOM, ran[SELDOM], None)[0]
    ours, bare = milliseconds(ran[OURS], wall), milliseconds(ran[BARE], wall)
    if ours is not None and bare is not None:
        yield Row(f"{heat.name}: the host's share beyond a bare loop's", "ms", ours - bare)
    if not ran[BOARD].words:
        without, logged = (milliseconds(ran[name], telling) for name in (OURS, BOARD))
        assert without is not None and logged is not None
        cause = f"measured: {without:.2f} ms without TensorBoard"
        name = f"{heat.name}: log, events and TensorBoard of a step"
        yield Row(name, "ms", logged, goal=f"at most {LOGGED:g} ms", met=logged <= LOGGED, cause=cause)


def telling(step: Step) -> float:
    """Seconds in which a step's numbers were written down."""
    return step.values["log"]


def agreement(heat: Heat, ran: dict[str, Ran]) -> Iterator[Row]:
    """Outlast's losses, and those of a peer that are others."""
    plain = losses(ran[BARE], COMPARED)
    for name in (OURS, *PEERS):
        if name != BARE and not ran[name].words:
            found = apart(losses(ran[name], COMPARED), plain)
            row = loss_row(heat.name, found, f"the {BARE}'s")
            if name == OURS:
                yield row
            elif not row.met:
                yield replace(row, outlast=None, peer_name=name, peer=row.outlast)


def reads_row(heat: Heat, folder: Path) -> Row:
    """In a run of its own, which the counting slows."""
    tree = recipe(folder / "data", heat.shape.length, heat.shape.rows, heat.precision)
    config = write_run(folder / "reads", tree)
    done = subprocess.run([sys.executable, "-m", "benchmarks.step.reads", str(config)], capture_output=True, text=True)
    if done.returncode:
        raise Unable(f"counting what the host reads: {last_line(done.stderr)}")
    found: dict[str, float] = json.loads(last_line(done.stdout))
    told = ", ".join(f"{place} {number:g}" for place, number in found.items())
    return Row(f"values that the host asks of tensors in a step{told and f' ({told})'}", "", sum(found.values()))
