"""How long a step takes, and this rank's own part of it, read when the device has come that far.

The host launches the next step before it looks at the numbers of this one: a device that is never asked never waits.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def mark(device: torch.device) -> Any:
    """A moment of the device's own work; on the CPU the work is done at once."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def between(first: Any, last: Any) -> float:
    """Seconds, once the device has passed both."""
    return float(last - first if isinstance(first, float) else first.elapsed_time(last) / 1000)


class Stopwatch:
    """Adds up the forward passes of a model's layers: no collective lies inside them.

    To be made before fully_shard, which puts its own hook (it waits for a layer's weights) before ours. The backward
    pass is as slow as the forward pass on a slow GPU or core, and cannot be told from the waiting.
    """

    def __init__(self, model: torch.nn.Module, device: torch.device) -> None:
        self._device = device
        self._marks: list[Any] = []
        layers = set(getattr(model, "_no_split_modules", None) or ())
        for module in model.modules():
            if type(module).__name__ in layers:
                module.register_forward_pre_hook(self._mark)
                module.register_forward_hook(self._mark)

    def _mark(self, *_: Any) -> None:
        self._marks.append(mark(self._device))

    def lap(self) -> Callable[[], float]:
        """What lies between the last call and this one, in seconds, to be asked when the device has done it; 0 of a
        model without layers."""
        begun, ended = self._marks[::2], self._marks[1::2]
        self._marks = []
        return lambda: sum(map(between, begun, ended))


class Launched:
    """A step that the device may still be at."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._begin = device, mark(device)

    def end(self, *numbers: Tensor) -> None:
        """All of it is launched; `numbers`: its scalars, on whatever device."""
        numbers_here = torch.stack([number.detach().to(self._device, torch.float64) for number in numbers])
        if self._device.type == "cuda":
            self._numbers = torch.empty(len(numbers), dtype=torch.float64, pin_memory=True)
            self._numbers.copy_(numbers_here, non_blocking=True)
        else:
            self._numbers = numbers_here
        self._end = mark(self._device)

    def idle_since(self, before: Launched) -> float:
        """Seconds between the step before and this one, once both are done."""
        return between(before._end, self._begin)

    def read(self) -> tuple[float, list[float]]:
        """Seconds of the step, and its numbers. Waits for the device."""
        if self._device.type == "cuda":
            self._end.synchronize()
        return between(self._begin, self._end), self._numbers.tolist()
