"""Rows of new tokens: each starts from the mean of the rows of the pieces that its text had."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Read = Callable[[int, int], Tensor]
"""Elements [start, stop) of a flattened parameter."""


def names(model: Any) -> set[str]:
    """Of the parameters that have a row for each token: of the embedding, and of the head where it is not tied."""
    modules = [model.get_input_embeddings(), model.get_output_embeddings()]
    found = {p for module in modules if module is not None for p in module.parameters(recurse=False)}
    return {name for name, p in model.named_parameters() if p in found and len(p) == modules[0].num_embeddings}


def reader(read: Read, shape: list[int], pieces: dict[int, list[int]]) -> Read:
    """Of a parameter that has this `shape` where it lies, with its new rows, in fp32. Rows of no token are zero."""
    width = math.prod(shape[1:])
    there = shape[0] * width

    def grown(start: int, stop: int) -> Tensor:
        out = torch.zeros(stop - start)
        if start < there:
            out[: there - start] = read(start, min(stop, there))
        for row in filter(range(start // width, -(-stop // width)).__contains__, pieces):
            mean = torch.stack([read(piece * width, (piece + 1) * width) for piece in pieces[row]]).float().mean(0)
            first, last = max(start, row * width), min(stop, (row + 1) * width)
            out[first - start : last - start] = mean[first - row * width : last - row * width]
        return out

    return grown


def append(model: Any, rows: int, pieces: dict[int, list[int]]) -> None:
    """Give a whole model its new rows."""
    there = model.get_input_embeddings().num_embeddings
    if rows > there:
        model.resize_token_embeddings(rows, mean_resizing=False)
    growing = names(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in growing:
                parameter[there:] = 0
                for row, old in pieces.items():
                    parameter[row] = parameter[old].float().mean(0)
