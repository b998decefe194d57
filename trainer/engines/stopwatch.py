"""How long this rank itself computes in a step, without what it waits for others."""

from __future__ import annotations

import time
from typing import Any

import torch


class Stopwatch:
    """Adds up the forward passes of a model's layers: no collective lies inside them.

    To be made before fully_shard, which puts its own hook (it waits for a layer's weights) before ours. The backward
    pass is as slow as the forward pass on a slow GPU or core, and cannot be told from the waiting.
    """

    def __init__(self, model: torch.nn.Module, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._marks: list[Any] = []
        layers = set(getattr(model, "_no_split_modules", None) or ())
        for module in model.modules():
            if type(module).__name__ in layers:
                module.register_forward_pre_hook(self._mark)
                module.register_forward_hook(self._mark)

    def _mark(self, *_: Any) -> None:
        if self._cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def read(self) -> float:
        """Seconds since the last reading; 0 of a model without layers. The device has finished the step."""
        begun, ended = self._marks[::2], self._marks[1::2]
        self._marks = []
        if self._cuda:
            return sum(a.elapsed_time(b) for a, b in zip(begun, ended, strict=True)) / 1000
        return sum(b - a for a, b in zip(begun, ended, strict=True))
