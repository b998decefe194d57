"""What saves memory in a step, and what it costs: gradient checkpointing in every mode, and the loss in pieces.

One process takes the modes in turn, so that times are ratios of neighbours; kept is what stands between forward and
backward besides the weights, counted at each tensor that autograd saves. The peak of the loss is that of a process of
its own, above what it holds before.
"""

from __future__ import annotations

import gc
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.nn import functional

from benchmarks.rows import Row
from trainer.data.batches import MicroBatch
from trainer.model import recompute
from trainer.model.loss import LossModel, Tail, teach_the_head
from trainer.model.weights import build
from trainer.schema import EveryK, Train
from trainer.shape import Model

MIB = 2**20
SHAPES: dict[str, tuple[int, int, int, int, int]] = {  # hidden, layers, vocabulary, rows, tokens of a row
    "5M": (256, 4, 4096, 8, 256),
    "33M": (512, 8, 8192, 2, 512),
    "5M, long": (256, 4, 4096, 1, 2048),
}
MODES: dict[str, Any] = {"none": False, "selective": "selective", "every_k: 2": EveryK(2), "true": True}
CLAIM = "claim: a quarter of the memory"
CLAIMED_TIME = 1.2
LOSS_GOAL = 1.05
HIDDEN, VOCABULARY, TOKENS = 256, 32_768, 2048  # of the loss
ROUNDS = 5


def measure(quick: bool) -> list[Row]:
    torch.set_num_threads(1)
    rows = []
    for name, shape in list(SHAPES.items())[: 1 if quick else None]:
        rows += checkpointing(name, shape, 3 if quick else ROUNDS)
    return rows + the_loss(3 if quick else ROUNDS)


def checkpointing(name: str, shape: tuple[int, int, int, int, int], rounds: int) -> list[Row]:
    steps, kept = {}, {}
    for mode, setting in MODES.items():
        whole, batch = model_and_batch(shape, setting)
        steps[mode], kept[mode] = step(whole, batch), saved(whole, batch)
    times = in_turn(steps, rounds)
    rows = []
    for mode in list(MODES)[1:]:
        less, slower = kept["none"] / kept[mode], times[mode] / times["none"]
        row = Row(f"{name}, {mode}: kept", "MiB", kept[mode] / MIB, "none", kept["none"] / MIB, ratio=less)
        cost = Row(f"{name}, {mode}: time of a step", "x", slower)
        if mode == "true":
            cause = f"measured: {less:.1f} times less for {slower - 1:.0%} more time"
            met = less >= 4 and slower <= CLAIMED_TIME
            row = replace(row, goal=f"{CLAIM}, 20 % more time", met=met, cause=cause)
        rows += [row, cost]
    return rows


def model_and_batch(shape: tuple[int, int, int, int, int], mode: Any) -> tuple[LossModel, MicroBatch]:
    hidden, layers, vocabulary, rows, tokens = shape
    config = {
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": 8 * hidden // 3,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 64,
        "vocab_size": vocabulary,
        "max_position_embeddings": tokens,
        "tie_word_embeddings": True,
    }
    model = build(Model(config=config), seed=0)
    recompute.enable(model, Train(global_batch_size=1, steps=1, gradient_checkpointing=mode))
    model.train()
    generator = torch.Generator().manual_seed(0)
    ids, labels = (torch.randint(0, vocabulary, (rows, tokens), generator=generator) for _ in range(2))
    return LossModel(model), MicroBatch.of(ids, labels, torch.arange(tokens).expand(rows, -1).contiguous())


def step(whole: LossModel, batch: MicroBatch) -> Callable[[], None]:
    def once() -> None:
        whole.zero_grad(set_to_none=True)
        whole(batch).backward()

    return once


def saved(whole: LossModel, batch: MicroBatch) -> int:
    """Bytes that stand between forward and backward besides what stood before: of the storages that autograd keeps,
    and of those that selective checkpointing keeps past it."""
    before = storages()  # held, so that no address is given away twice
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        total = whole(batch)
    kept |= storages()
    total.detach_()
    return sum(storage.nbytes() for address, storage in kept.items() if address not in before)


def storages() -> dict[int, torch.UntypedStorage]:
    """Of every tensor that Python knows, by address."""
    gc.collect()
    found = [thing.untyped_storage() for thing in gc.get_objects() if type(thing) in (torch.Tensor, torch.nn.Parameter)]
    return {storage.data_ptr(): storage for storage in found}


def in_turn(steps: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Median seconds of each, taken in turn after one that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 1):
        for name, once in steps.items():
            began = time.process_time()
            once()
            if turn:
                seconds[name].append(time.process_time() - began)
    return {name: median(taken) for name, taken in seconds.items()}


# --- the loss ---------------------------------------------------------------------------------------------


def the_loss(rounds: int) -> list[Row]:
    times = in_turn({kind: loss_of(kind) for kind in ("whole", "pieces")}, rounds)
    peaks = {kind: peak(kind) for kind in times}
    name = f"loss of {TOKENS:,} tokens, {VOCABULARY:,} words"
    slower = times["pieces"] / times["whole"]
    logits = TOKENS * VOCABULARY * 4 / MIB
    cause = "" if slower <= LOSS_GOAL else f"{slower:.2f} times its time"
    return [
        Row(f"{name}: time", "x", slower, goal=f"at most {LOSS_GOAL:g}", met=slower <= LOSS_GOAL, cause=cause),
        Row(
            f"{name}: peak",
            "MiB",
            peaks["pieces"] / MIB,
            "whole logits",
            peaks["whole"] / MIB,
            "logits",
            logits,
            peaks["whole"] / peaks["pieces"],
            "less than the logits alone",
            peaks["pieces"] / MIB < logits,
        ),  # fmt: skip
    ]


def loss_of(kind: str) -> Callable[[], None]:
    generator = torch.Generator().manual_seed(0)
    head = torch.nn.Linear(HIDDEN, VOCABULARY, bias=False)
    hidden = torch.randn(TOKENS, HIDDEN, generator=generator, requires_grad=True)
    labels = torch.randint(0, VOCABULARY, (TOKENS,), generator=generator)
    if kind == "pieces":
        teach_the_head(head, Tail())

    def once() -> None:
        hidden.grad = head.weight.grad = None
        if kind == "pieces":
            total = head(hidden, labels, torch.arange(TOKENS))
        else:
            total = functional.cross_entropy(head(hidden), labels, reduction="sum")
        total.backward()

    return once


def peak(kind: str) -> int:
    """Bytes that a process of its own needs at most, above what it holds before."""
    argv = [sys.executable, "-m", "benchmarks.memory.measure", kind]
    return int(subprocess.run(argv, capture_output=True, text=True, check=True).stdout)


def high_water() -> int:
    """Most bytes that were resident; the kernel's own figure, since a child's ru_maxrss begins at its parent's."""
    found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


if __name__ == "__main__":
    torch.set_num_threads(1)
    once = loss_of(sys.argv[1])
    (torch.randn(64, 64) @ torch.randn(64, 64)).sum()  # what the libraries take at their first use
    before = high_water()
    once()
    print(high_water() - before)
