"""What all contenders share: the gate that lets them run a few steps at a time, one model, one set of tokens.

Runs in benchmarks/.venv as well and imports nothing of Outlast.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from time import perf_counter, process_time
from typing import Any


class Gate:
    """Stands before every step. Standard input says how many to run; then GATE, an open file, is told of each.

    A step lasts from one gate to the next, so that nothing of a contender's loop is left out.
    """

    def __init__(self) -> None:
        self._answers = os.fdopen(int(os.environ["GATE"]), "w")
        self._left = 0
        self._began: tuple[float, float] | None = None
        self._marks: dict[str, float] = {}
        self._steps: list[dict[str, Any]] = []
        self.values: dict[str, float] = {}
        """Whatever else is worth telling of the step that runs."""

    def step(self) -> None:
        wall, cpu = perf_counter(), process_time()
        if self._began is not None:
            taken = {"wall": wall - self._began[0], "cpu": cpu - self._began[1]}
            marks = {name: mark - self._began[0] for name, mark in self._marks.items()}
            self._steps.append({**taken, "marks": marks, **self.values})
        if not self._left:
            self._wait()
        self._left -= 1
        self._marks, self.values = {}, {}
        self._began = (perf_counter(), process_time())

    def _wait(self) -> None:
        self._answers.write(json.dumps(self._steps) + "\n")
        self._answers.flush()
        self._steps = []
        order = sys.stdin.readline()
        if not order:  # the race is over
            os._exit(0)
        self._left = int(order)

    def mark(self, name: str) -> None:
        """A moment of the step that runs; the last one of this name counts."""
        self._marks[name] = perf_counter()

    def _adamw_begins(self, *_: Any) -> None:
        """For the first of its groups, where these step one by one. Some loops run the passes inside of it."""
        if "passed" in self._marks:
            self._marks.setdefault("adamw", perf_counter())

    def watch(self, model: Any) -> None:
        """Mark where its forward pass begins, before it gathers anything, where its layers end, and AdamW."""
        from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

        layers = next(module for module in model.modules() if type(module).__name__ == "LlamaModel")
        model.register_forward_pre_hook(lambda *_: self.mark("forward"), prepend=True)
        layers.register_forward_hook(lambda *_: self.mark("passed"))
        register_optimizer_step_pre_hook(self._adamw_begins)
        register_optimizer_step_post_hook(lambda *_: self.mark("stepped"))


def settings(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "settings.json").read_text()))


def fsync(folder: Path) -> float:
    """Make what a peer has left to the page cache durable; seconds, which are not the peer's."""
    began = perf_counter()
    for path in filter(Path.is_file, folder.rglob("*")):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    return perf_counter() - began


def model(options: dict[str, Any]) -> Any:
    """fp32, from the folder that Outlast starts from."""
    import torch
    from transformers import LlamaForCausalLM

    made = LlamaForCausalLM.from_pretrained(options["weights"], dtype=torch.float32, attn_implementation="sdpa")
    made.config.use_cache = False
    return made.train()


def optimizer(network: Any, options: dict[str, Any]) -> Any:
    """Matrices alone decay."""
    import torch

    groups = [
        {"params": [p for p in network.parameters() if p.ndim >= 2], "weight_decay": options["decay"]},
        {"params": [p for p in network.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=options["lr"], betas=options["betas"], eps=options["eps"], fused=True)


def dataset(options: dict[str, Any]) -> Any:
    """Sequences of tokens (T,), in the order in which Outlast reads them."""
    import numpy as np
    import torch

    class Sequences(torch.utils.data.Dataset):  # type: ignore[type-arg]
        def __init__(self) -> None:
            self.tokens = np.load(options["tokens"], mmap_mode="r")

        def __len__(self) -> int:
            return len(self.tokens)

        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            tokens = torch.from_numpy(self.tokens[index].astype(np.int64))
            return {"input_ids": tokens, "labels": tokens}

    return Sequences()
