"""Documents of many lengths: Outlast's packing beside what transformers makes of them, and the loss of a token."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks import peers
from benchmarks.processes import Unable
from benchmarks.rows import Row
from benchmarks.step.figures import AGREE, others_row, token_rows
from benchmarks.step.place import (
    SEED,
    Shape,
    documents,
    prepare_data,
    recipe,
    write_documents,
    write_run,
    write_settings,
    write_tokenizer,
    write_weights,
)
from benchmarks.step.race import Racer, Ran, most, race

SCRIPT = Path(__file__).parent / "peers" / "packed_loop.py"
MEDIAN, SIGMA, SHORTEST, LONGEST = 105, 0.6, 8, 512
"""Tokens of a document, drawn lognormal: 124 on average."""
ROWS, LENGTH = 2, LONGEST
"""Of Outlast's step: as many tokens as the documents of a padded batch have on average."""
BATCH = 8
"""Documents of a padded batch."""
SHAPE = Shape("5M", 256, 4, 4096, ROWS, LENGTH)
OURS, AUTO, PADDED, POSITIONS = "Outlast", "Outlast, compile: auto", "dynamic padding", "position_ids"
GOALS = {PADDED: 1.9, POSITIONS: 1.25}
FILL = 99.9
Batches = list[list[dict[str, list[int]]]]
"""Of each step the documents, as transformers' collators take them."""
WARM, STEPS = 3, 8
"""Steps before the first round, and of a round."""


def lengths(count: int) -> list[int]:
    """Tokens of each document."""
    drawn = np.random.default_rng(SEED).lognormal(np.log(MEDIAN), SIGMA, count)
    return [int(length) for length in np.clip(np.rint(drawn), SHORTEST, LONGEST)]


def measure(work: Path, quick: bool, absent: dict[str, str]) -> Iterator[Row]:
    print("  documents", flush=True)
    rounds, folder = 4 if quick else 10, work / "documents"
    ran = run(folder, most(WARM, rounds, STEPS), rounds, absent)
    if words := ran[OURS].words or ran[AUTO].words:
        raise Unable(words)
    limit = padding(ran[PADDED])
    name = "useful tokens, 5M bf16"
    for ours, named in ((OURS, name), (AUTO, f"{name}, compile: auto")):
        yield from token_rows(named, ran[ours], f"HF, {PADDED}", ran[PADDED], GOALS[PADDED], limit)
        yield from token_rows(named, ran[ours], f"HF, {POSITIONS}", ran[POSITIONS], GOALS[POSITIONS], None)
    yield others_row(name, ran.values())
    fill, most_full = filled(recipe(folder, LENGTH, ROWS, "fp32"))
    yield Row(
        "slots of packed sequences that hold a token", "%", fill, goal=f"at least {FILL:g}", met=fill >= FILL,
        cause=f"no document is cut that fits; cut anywhere, the same tokens would fill {most_full:.2f} %",
    )  # fmt: skip
    packed, leaking = losses_apart()
    yield Row(
        f"loss of a token, packed beside alone ({leaking:,.0f} ppm if documents saw each other)", "ppm", packed,
        goal=f"at most {AGREE:g} ppm", met=packed <= AGREE, cause=f"measured: {packed:.3g} ppm",
    )  # fmt: skip


def run(folder: Path, steps: int, rounds: int, absent: dict[str, str]) -> dict[str, Ran]:
    folder.mkdir(parents=True)
    write_weights(SHAPE, folder / "weights")
    write_tokenizer(SHAPE.vocabulary, folder / "tokenizer")
    write_documents(lengths(steps * BATCH), SHAPE.vocabulary, folder / "train.jsonl")
    tree = recipe(folder, LENGTH, ROWS, "master32")
    auto = tree | {"train": {**tree["train"], "compile": "auto"}}
    racers = [our_racer(OURS, folder, tree), our_racer(AUTO, folder, auto)]
    if "transformers" not in absent:
        racers.append(their_racer(PADDED, "padded", folder, at_random(tree)))
        racers.append(their_racer(POSITIONS, "position_ids", folder, as_packed(tree, steps, ROWS)))
    missing = {name: Ran(words=absent.get("transformers", "")) for name in (PADDED, POSITIONS)}
    return missing | race(racers, WARM, rounds, STEPS)


def our_racer(name: str, folder: Path, tree: dict[str, Any]) -> Racer:
    config = write_run(folder / name, tree)
    argv = [sys.executable, "-m", "benchmarks.step.rank", str(config)]
    return Racer(name, argv, folder / f"{name}.log")


def their_racer(name: str, collator: str, folder: Path, batches: Batches) -> Racer:
    file = folder / f"{collator}.json"
    file.write_text(json.dumps(batches))
    given = write_settings(folder / collator, folder, 1, True, batches=str(file), collator=collator)
    return Racer(name, [str(peers.BIN / "python"), str(SCRIPT), str(given)], folder / f"{collator}.log")


def at_random(tree: dict[str, Any]) -> Batches:
    """Batches of whole documents."""
    prepared = prepare_data(tree)
    starts = [*map(int, prepared.starts), prepared.manifest.tokens]
    documents = [{"input_ids": prepared.tokens[start:stop].tolist()} for start, stop in pairwise(starts)]
    order = np.random.default_rng(SEED).permutation(len(documents)).tolist()
    return [[documents[index] for index in order[first : first + BATCH]] for first in range(0, len(order), BATCH)]


def as_packed(tree: dict[str, Any], steps: int, rows: int) -> Batches:
    """Outlast's own steps: the pieces of documents that lie in each, whole, with the labels that count."""
    from trainer.data.order import batch_indices

    prepared = prepare_data(tree)
    orders = (batch_indices(step, rows, prepared.sequences, 0) for step in range(steps))
    return [[labelled(*one) for index in order for one in documents(prepared, index)] for order in orders]


def labelled(tokens: npt.NDArray[Any], counted: npt.NDArray[Any]) -> dict[str, list[int]]:
    return {"input_ids": tokens.tolist(), "labels": np.where(counted, tokens.astype(np.int64), -100).tolist()}


def padding(padded: Ran) -> float | None:
    """Times that a padded batch has more slots than tokens."""
    if padded.words:
        return None
    counted = [step.values for step in padded.counted]
    return sum(one["slots"] for one in counted) / sum(one["tokens"] for one in counted)


def filled(tree: dict[str, Any]) -> tuple[float, float]:
    """% of the places of all sequences, and of as few sequences as would hold them."""
    found = prepare_data(tree).manifest
    return 100 * found.fill, 100 * found.pairs / (-(-found.pairs // found.seq_len) * found.seq_len)


# --- the same loss ----------------------------------------------------------------------------------------------


def losses_apart() -> tuple[float, float]:
    """ppm between the loss of whole documents in one micro batch of Outlast's and that of each by itself in plain
    transformers, fp32; and with the bounds of the documents left out. Weights are wide, so that it matters who is seen.
    """
    import torch

    from trainer.data.batches import MicroBatch
    from trainer.model.loss import LossModel
    from trainer.model.weights import build
    from trainer.shape import Model

    config = SHAPE.config | {"initializer_range": 0.1}
    packed, alone = (build(Model(config=config, attention=kind), SEED) for kind in ("documents", "sdpa"))
    whole = fitting(lengths(10 * ROWS), ROWS * LENGTH)
    generator = torch.Generator().manual_seed(SEED)
    documents = [torch.randint(1, SHAPE.vocabulary, (length,), generator=generator) for length in whole]
    tokens = torch.cat(documents)[None]
    labels = torch.cat([torch.cat([one[1:], torch.tensor([-100])]) for one in documents]).view_as(tokens)
    places = torch.cat([torch.arange(length) for length in whole]).view_as(tokens)
    loss = LossModel(packed)
    with torch.no_grad():
        plain = sum(
            float(alone(input_ids=one[None], labels=one[None], use_cache=False).loss) * (len(one) - 1)
            for one in documents
        )
        ours = float(loss(MicroBatch.of(tokens, labels, places)))
        leaking = float(loss(MicroBatch.of(tokens, labels, torch.arange(tokens.numel()).view_as(tokens))))
    return 1e6 * abs(ours - plain) / plain, 1e6 * abs(leaking - plain) / plain


def fitting(drawn: Sequence[int], room: int) -> list[int]:
    """Those that fit one after the other."""
    found: list[int] = []
    for length in drawn:
        if sum(found) + length <= room:
            found.append(length)
    return found
