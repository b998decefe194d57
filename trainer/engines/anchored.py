"""The weights that a run started from, and how much each one matters: flat tensors that lie like what AdamW steps on.

After AdamW's own step each weight goes a part of its way back, by the closed form of the proximal step:
w <- (w + c w0) / (1 + c) with c = learning rate x strength x importance, which no strength makes unstable. What an
engine computes with follows from the weights after that, as it does after any step.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.engines.engine import Engine
from trainer.engines.lean import stretches
from trainer.engines.optimizer import local
from trainer.engines.shard import Shard

_STRETCH = {"cpu": 1 << 18, "cuda": 1 << 24}
"""Elements at a time: 1 MiB in fp32 stays in a core's cache, and a GPU is launched seldom."""
IMPORTANCE = "importance"


@dataclass(frozen=True)
class Kept:
    """Beside one tensor that AdamW steps on, (n,) as this rank holds it."""

    weights: Tensor
    importance: Tensor | None
    """None: all weights matter alike."""


class Anchored:
    def __init__(self, engine: Engine, on_cpu: bool, with_importance: bool) -> None:
        """All zeros. `on_cpu`: in host memory; else beside what AdamW steps on."""
        self._engine = engine
        self._kept: dict[Tensor, Kept] = {}
        for stepped in engine.optimizer.adamw.state:
            pinned = on_cpu and stepped.device.type == "cuda"
            new = [
                torch.zeros(local(stepped).numel(), device="cpu" if on_cpu else stepped.device, pin_memory=pinned)
                for _ in range(1 + with_importance)
            ]
            self._kept[stepped] = Kept(new[0], new[1] if with_importance else None)
        self.shards = list(self._shards())
        """As the engine's own: `weights`, and `importance`."""

    def _shards(self) -> Iterator[Shard]:
        """The engine's are views of what AdamW steps on; ours lie at the same places."""
        at = sorted(((local(stepped.detach()).data_ptr(), stepped) for stepped in self._kept), key=lambda pair: pair[0])
        begins = [begin for begin, _ in at]
        for shard in self._engine.shards():
            values = shard.tensors["weights"]
            assert isinstance(values, Tensor)
            kept, first = Kept(torch.empty(0), torch.empty(0)), 0
            if len(values):
                begin, stepped = at[bisect_right(begins, values.data_ptr()) - 1]
                kept, first = self._kept[stepped], (values.data_ptr() - begin) // values.element_size()
            tensors = {"weights": kept.weights[first : first + len(values)]}
            if kept.importance is not None:
                tensors[IMPORTANCE] = kept.importance[first : first + len(values)]
            yield Shard(shard.name, shard.shape, shard.start, shard.stop, dict(tensors), torch.zeros(()))

    @torch.no_grad()
    def take_weights(self) -> None:
        """From here on the anchor is what the weights are now."""
        for ours, theirs in zip(self.shards, self._engine.shards(), strict=True):
            ours.tensors["weights"].copy_(theirs.tensors["weights"][:])

    @torch.no_grad()
    def add_square(self, stepped: Tensor, gradient: Tensor) -> None:
        """To the importance."""
        total = self._kept[stepped].importance
        assert total is not None
        for part in stretches(len(total), _STRETCH[gradient.device.type]):
            total[part] += gradient[part].square().to(total.device)

    def pull(self, strength: float) -> None:
        """After every step of AdamW from here on."""

        @torch.no_grad()
        def back(stepped: Tensor, rate: Tensor) -> None:
            weights, kept, device = local(stepped.detach()).view(-1), self._kept[stepped], stepped.device
            step = (rate * strength).to(device, torch.float32)
            for part in stretches(len(weights), _STRETCH[device.type]):
                c = step if kept.importance is None else kept.importance[part].to(device, non_blocking=True) * step
                weights[part].lerp_(kept.weights[part].to(device, non_blocking=True), c / (c + 1))

        self._engine.optimizer.after_step(back)

    @torch.no_grad()
    def distance(self) -> float:
        """Of this rank: sum of importance x (w - w0)^2."""
        total: Tensor | float = 0.0
        for ours, theirs in zip(self.shards, self._engine.shards(), strict=True):
            weights = theirs.tensors["weights"]
            assert isinstance(weights, Tensor)
            for part in stretches(len(weights), _STRETCH[weights.device.type]):
                now = weights[part]
                square = (now - ours.tensors["weights"][part].to(now.device, non_blocking=True)).square_()
                if IMPORTANCE in ours.tensors:
                    square *= ours.tensors[IMPORTANCE][part].to(now.device, non_blocking=True)
                total = total + square.sum(dtype=torch.float64)
        return float(total)


def fingerprint(shard: Shard, replicas: tuple[int, int]) -> int:
    """This rank's part of a parameter's weights as a number, whose sum modulo 2**64 over the ranks says which values
    stand where, however they are shared out: of each value's bits times its place."""
    start, stop = shard.part(*replicas)
    values, total = shard.tensors["weights"][start - shard.start : stop - shard.start], 0
    for part in stretches(stop - start, _STRETCH[values.device.type]):
        bits = values[part].detach().view(torch.int32).long()
        place = torch.arange(start + part.start, start + part.stop, device=bits.device)
        total += int((bits * (2 * place + 1)).sum())  # int64: it wraps
    return total % (1 << 64)
