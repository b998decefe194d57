"""Answers to prompts three times as long, as in instruction tuning: of a step's tokens the answers alone count. Beside
transformers' position_ids with the same tokens and labels, as TRL's trainer packs them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks.processes import Unable
from benchmarks.rows import Row
from benchmarks.step import packing
from benchmarks.step.figures import apart, losses, others_row, token_rows
from benchmarks.step.packing import OURS, POSITIONS, as_packed, our_racer, their_racer
from benchmarks.step.place import Shape, recipe, write_pairs, write_tokenizer, write_weights
from benchmarks.step.race import Ran, most, race

SHAPE = Shape("33M", 512, 8, 8192, 2, 512)
"""Its head is 14 % of its parameters in matrices, as in a model of 1B; of 7B's it is 2 to 8 %."""
PROMPT = 0.75
"""Of a document's tokens."""
GOAL = packing.GOALS[POSITIONS]
WARM, STEPS, COMPARED = 2, 4, 5
"""Steps before the first round, of a round, and those whose losses are compared."""


def measure(work: Path, quick: bool, absent: dict[str, str]) -> Iterator[Row]:
    print("  answers", flush=True)
    rounds = 3 if quick else 6
    ran = run(work / "answers", most(WARM, rounds, STEPS), rounds, absent)
    if words := ran[OURS].words:
        raise Unable(words)
    name = f"tokens where {1 - PROMPT:.0%} count, {SHAPE.name} bf16"
    yield from token_rows(name, ran[OURS], f"HF, {POSITIONS}", ran[POSITIONS], GOAL, None)
    yield others_row(name, ran.values())
    if not ran[POSITIONS].words:
        worst = max(apart(losses(ran[OURS], COMPARED), losses(ran[POSITIONS], COMPARED)))
        yield Row(f"{name}: {COMPARED} losses apart from {POSITIONS}'", "ppm", worst)


def run(folder: Path, steps: int, rounds: int, absent: dict[str, str]) -> dict[str, Ran]:
    folder.mkdir(parents=True)
    write_weights(SHAPE, folder / "weights")
    write_tokenizer(SHAPE.vocabulary, folder / "tokenizer")
    lengths = packing.lengths(steps * packing.BATCH)
    write_pairs(lengths, PROMPT, SHAPE.vocabulary, folder / "train.jsonl")
    tree = recipe(folder, SHAPE.length, SHAPE.rows, "master32")
    tree["data"]["format"] = "completion"
    racers = [our_racer(OURS, folder, tree)]
    if "transformers" not in absent:
        racers.append(their_racer(POSITIONS, "position_ids", folder, as_packed(tree, steps, SHAPE.rows)))
    return {POSITIONS: Ran(words=absent.get("transformers", ""))} | race(racers, WARM, rounds, STEPS)
