"""The generators that training may draw from: saved for each rank, or derived where no rank fits."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from trainer.checkpoint.format import Array


def rng_state() -> dict[str, Array]:
    """The state of every generator that training may draw from, as flat arrays."""
    _, words, _ = random.getstate()
    numpy: Any = np.random.get_state(legacy=True)
    state: dict[str, Array] = {
        "rng/torch": torch.get_rng_state().numpy(),
        "rng/python": np.array(words, np.int64),
        "rng/numpy": np.array([*numpy[1], numpy[2]], np.int64),
    }
    if torch.cuda.is_available():
        state["rng/cuda"] = torch.cuda.get_rng_state().numpy()
    return state


def restore_rng(state: dict[str, Array]) -> None:
    torch.set_rng_state(torch.from_numpy(state["rng/torch"]))
    random.setstate((3, tuple(int(word) for word in state["rng/python"]), None))
    words = state["rng/numpy"]
    np.random.set_state(("MT19937", words[:-1].astype(np.uint32), int(words[-1]), 0, 0.0))
    if "rng/cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(torch.from_numpy(state["rng/cuda"]))


def derive_rng(seed: int, step: int, rank: int) -> None:
    """Fresh but reproducible generators, for a world in which the saved ones have no rank to go to."""
    mixed = np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0]
    torch.manual_seed(int(mixed))
    random.seed(int(mixed))
    np.random.seed(int(mixed) % 2**32)
