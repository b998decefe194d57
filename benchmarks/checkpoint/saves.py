"""What a save costs the training, how soon it is durable, and what it takes on the disk."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import peers
from benchmarks.processes import Unable
from benchmarks.rows import Row
from benchmarks.step.figures import others_row
from benchmarks.step.place import Shape, inputs, recipe, write_run, write_settings
from benchmarks.step.race import THREADS, Racer, Ran, Step, most, race
from slurm.node import node_memory

SCRIPTS = Path(__file__).parent.parent / "step" / "peers"
OURS, LIMITS, TRAINER = "Outlast", "limits", "HF Trainer"
SAVE, DCP, ASYNC, KEPT = "torch.save", "dcp.save", "dcp.async_save", "dcp.async_save, stager kept"
EVERY = 10
"""Steps between two saves, and of a round."""
WARM = 2 * EVERY - 2
"""Steps before the first round, a first save among them: the second step of a round, the first that counts, saves."""
FOLLOWING = 4
"""Steps after a save that it may slow. The rest of the round is as if there were no save."""
STALL, TIMES, SLOWER, RATE, DURABLE, BYTES = 1.2, 3.0, 10.0, 0.90, 1.5, 1.02
"""Goals: of memcpy; ahead of dcp.async_save; % of a step; of a raw write; ahead of DCP; of 12 bytes a parameter."""


@dataclass(frozen=True)
class Heat:
    shape: Shape
    rounds: int
    peers: tuple[str, ...]
    threads: int = THREADS
    """Of torch, in each contender."""

    @property
    def name(self) -> str:
        return self.shape.name + (", a core left free" if self.threads < THREADS else "")


@dataclass(frozen=True)
class Cost:
    """What a save took from the training, seconds; figures of one round."""

    stall: float
    slower: float
    usual: float
    """A step without a save."""
    cpu: float
    """Of the save, in whatever step: of all threads of its process."""

    @classmethod
    def of(cls, steps: Sequence[Step]) -> Cost:
        rest = steps[1 + FOLLOWING :]
        usual, cpu = median(step.wall for step in rest), median(step.cpu for step in rest)
        save, *following = steps[: 1 + FOLLOWING]
        return cls(
            stall=around(save) - median(map(around, rest)),
            slower=sum(step.wall - usual for step in following),
            usual=usual,
            cpu=sum(step.cpu - cpu for step in (save, *following)),
        )


def around(step: Step) -> float:
    """Seconds outside the model and AdamW: every contender saves there."""
    return step.parts["around"] - step.values.get("fsync", 0.0)


@dataclass(frozen=True)
class Saves:
    """What came of a contender that saves."""

    rounds: list[Cost]
    first: float
    """Stall of its first save."""
    durable: list[float]
    """Seconds, of each save but the first."""
    size: int
    """Bytes of a checkpoint."""
    threads: int
    """That computed beside them."""
    staged: float = 0.0
    """Of these saves, seconds that training waited as the contender itself tells."""

    def typical(self, of: Callable[[Cost], float]) -> float:
        return median(map(of, self.rounds))

    @property
    def rate(self) -> float:
        return self.size / median(self.durable) / 1e9


def heats(quick: bool) -> list[Heat]:
    """A node that trains on GPUs has cores to spare; one that trains on its cores has none."""
    small, large = Shape("10M", 320, 6, 4096, 4, 256), Shape("110M", 768, 12, 16_384, 1, 512)
    every = (ASYNC, DCP, SAVE, TRAINER)
    found = [Heat(small, 6, (*every, KEPT)), Heat(small, 6, (ASYNC,), THREADS - 1)]
    found += [] if quick else [Heat(large, 5, every), Heat(large, 5, (ASYNC,), THREADS - 1)]
    return [heat for heat in found if heat.threads]


def measure(work: Path, quick: bool, absent: dict[str, str]) -> Iterator[Row]:
    for heat in heats(quick):
        print(f"  saves, {heat.name}", flush=True)
        folder = work / f"saves-{heat.shape.name}-{heat.threads}"
        try:
            ran = run(heat, folder, absent)
        finally:
            node_memory.forget(folder / OURS)
        for name in (OURS, LIMITS):
            if ran[name].words:
                raise Unable(ran[name].words)
        found = {
            name: told(folder / name, name, one, heat.threads)
            for name, one in ran.items()
            if name != LIMITS and not one.words
        }
        words = {name: one.words for name, one in ran.items() if one.words}
        parameters = weights(folder) // 4
        yield from rows(heat, found, words, limits(ran[LIMITS]), parameters)
        yield others_row(f"{heat.name}: saves", ran.values())


def run(heat: Heat, folder: Path, absent: dict[str, str]) -> dict[str, Ran]:
    shape = heat.shape
    data = inputs(shape, most(WARM, heat.rounds, EVERY - 1) * shape.rows, folder / "data")
    python = str(peers.BIN / "python")
    tree = recipe(data, shape.length, shape.rows, "master32", checkpoint={"every": EVERY})
    config = write_run(folder / OURS, tree)
    memory = f"OUTLAST_NODE_MEMORY={node_memory.folder(config.parent)}"  # as the launcher has it
    commands = {OURS: ["env", memory, sys.executable, "-m", "benchmarks.step.rank", str(config)]}
    missing = {name: Ran(words=absent[package]) for name in heat.peers if (package := package_of(name)) in absent}
    given = {"data": data, "rows": shape.rows, "bf16": True, "save_every": EVERY}
    for name in heat.peers:
        if name not in missing:
            write_settings(folder / name, **given, how=name)
            script = "hf_trainer.py" if name == TRAINER else "saving_loop.py"
            commands[name] = [python, str(SCRIPTS / script), str(folder / name)]
    write_settings(folder / LIMITS, **given, bytes=3 * weights(folder))
    commands[LIMITS] = [sys.executable, "-m", "benchmarks.checkpoint.limits", str(folder / LIMITS)]
    racers = [Racer(name, argv, folder / name / "log", threads=heat.threads) for name, argv in commands.items()]
    return race(racers, WARM, heat.rounds, EVERY - 1) | missing


def package_of(peer: str) -> str:
    return "transformers" if peer == TRAINER else "torch"


def weights(folder: Path) -> int:
    """Bytes of the fp32 weights."""
    return (folder / "data" / "weights" / "model.safetensors").stat().st_size


def limits(ran: Ran) -> dict[str, float]:
    """Seconds of a copy of a checkpoint's bytes, and of their write and fsync."""
    return {what: median(step.values[what] for step in ran.counted[:: EVERY - 1]) for what in ("memcpy", "durable")}


def told(folder: Path, name: str, ran: Ran, threads: int) -> Saves:
    rounds = [Cost.of(one.steps) for one in ran.rounds]
    stalls, durable = [0.0], [step.values["durable"] for step in ran.steps if "durable" in step.values][1:]
    if name == OURS:
        from trainer.records import events

        saves: list[dict[str, Any]] = [event for event in events.read(folder) if event["event"] == "save"][1:]
        durable = [event["seconds"] for event in saves]
        stalls = [event.get("stall", event["seconds"]) for event in saves]
    first = around(ran.steps[EVERY - 1]) - median(map(around, ran.steps[EVERY:WARM]))
    if not durable:
        raise Unable(f"{name}: no second save became durable: see {folder}")
    return Saves(rounds, first, durable, newest(folder), threads, median(stalls))


def newest(folder: Path) -> int:
    """Bytes of the newest checkpoint in a contender's folder."""
    found = [path for kind in ("checkpoints/step-*", "trainer/checkpoint-*", "saved/*") for path in folder.glob(kind)]
    last = max(found, key=lambda path: path.stat().st_mtime)
    return sum(path.stat().st_size for path in last.rglob("*") if path.is_file())


# --- rows -----------------------------------------------------------------------------------------------------


def rows(
    heat: Heat, found: dict[str, Saves], words: dict[str, str], limit: dict[str, float], parameters: int
) -> Iterator[Row]:
    ours, title = found[OURS], heat.name
    memcpy, raw = limit["memcpy"], 12 * parameters / limit["durable"] / 1e9
    yield stall_row(f"{title}: stall of a save", ours, memcpy)
    for name, of in (("stall of a save", stall), ("lost to a save in all", lost)):
        row = Row(f"{title}: {name}", "ms", 1000 * ours.typical(of), cause=where(ours))
        for peer in heat.peers:
            theirs = found.get(peer)
            beside = replace(row, peer_name=peer, peer=1000 * theirs.typical(of) if theirs else None)
            yield judged(beside.at_least(TIMES), peer == ASYNC, words.get(peer))
    yield slower_row(f"{title}: the {FOLLOWING} steps after a save slower, in sum", ours, found.get(ASYNC))
    yield rate_row(f"{title}: durable", ours, raw)
    for peer in heat.peers:
        theirs = found.get(peer)
        row = Row(f"{title}: durable", "GB/s", ours.rate, peer, theirs.rate if theirs else None, cause=slow(ours, raw))
        ratio = ours.rate / theirs.rate if theirs else None
        row = replace(row, ratio=ratio, goal=f"at least {DURABLE:g}x", met=None if ratio is None else ratio >= DURABLE)
        yield judged(row, peer in (DCP, ASYNC), words.get(peer))
    yield from size_rows(f"{title}: bytes of a parameter", found, heat.peers, parameters)
    yield Row(f"{title}: stall of the first save, whose memory is new", "ms", 1000 * ours.first)
    yield Row(f"{title}: a step without a save", "ms", 1000 * ours.typical(lambda cost: cost.usual))


def stall(cost: Cost) -> float:
    return cost.stall


def lost(cost: Cost) -> float:
    return cost.stall + cost.slower


def judged(row: Row, goal: bool, words: str | None) -> Row:
    """With its goal where there is one; a peer that did not run is missing, and says why."""
    if words:
        return replace(row, goal=row.goal if goal else "to run", cause=words)
    return row if goal else replace(row, goal="", met=None)


def stall_row(name: str, ours: Saves, memcpy: float) -> Row:
    spent = ours.typical(stall)
    row = Row(name, "ms", 1000 * spent, limit_name="memcpy", limit=1000 * memcpy, cause=where(ours))
    return replace(row, goal=f"at most {STALL:g}x memcpy", met=spent <= STALL * memcpy)


def slower_row(name: str, ours: Saves, theirs: Saves | None) -> Row:
    """In % of one step."""
    mine, other = (each and each.typical(lambda cost: 100 * cost.slower / cost.usual) for each in (ours, theirs))
    assert mine is not None
    row = Row(name, "%", mine, ASYNC, other, goal=f"at most {SLOWER:g} %", met=mine <= SLOWER)
    return replace(row, cause=f"measured: {beside_the_steps(ours)}")


def rate_row(name: str, ours: Saves, raw: float) -> Row:
    row = Row(name, "GB/s", ours.rate, limit_name="raw write", limit=raw, cause=slow(ours, raw))
    return replace(row, goal=f"at least {RATE:g} of it", met=ours.rate >= RATE * raw)


def size_rows(name: str, found: dict[str, Saves], beside: Sequence[str], parameters: int) -> Iterator[Row]:
    of = {who: one.size / parameters for who, one in found.items()}
    row = Row(name, "B", of[OURS], limit_name="three in fp32", limit=12.0)
    yield replace(row, goal=f"at most {BYTES:g}x 12", met=of[OURS] <= BYTES * 12)
    for peer in beside:
        if peer in of and peer != KEPT:
            yield Row(name, "B", of[OURS], peer, of[peer], ratio=of[peer] / of[OURS])


def where(ours: Saves) -> str:
    """A stall's parts."""
    whole, staged = 1000 * ours.typical(stall), 1000 * ours.staged
    return f"measured: {staged:.3g} ms of {whole:.3g} are the staging that events.jsonl tells, the rest is around it"


def slow(ours: Saves, raw: float) -> str:
    alone = ours.size / raw / 1e9
    taken = f"measured: {median(ours.durable):.3g} s, {ours.staged:.3g} of them staging; {alone:.3g} s raw, alone"
    return f"{taken}; {beside_the_steps(ours)}"


def beside_the_steps(ours: Saves) -> str:
    spent, cores = ours.typical(lambda cost: cost.cpu), len(os.sched_getaffinity(0))
    return f"a save takes {spent:.2g} s of a core, and the steps beside it compute on {ours.threads} of {cores}"
