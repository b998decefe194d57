"""AdamW in less memory than torch's: what it keeps is bf16 or eight bits, and a stretch of it at a time becomes fp32.

What is kept in bf16 is rounded up or down at random, in proportion to how near it lies: a small step is not lost, it
happens now and then. The randomness is a hash of seed, step, parameter and the element's place in the whole parameter,
so that it is the same however many ranks share the parameter.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import xxhash
from torch import Tensor

from trainer.engines.eight_bit import BLOCK, EightBit, Kept

_STRETCH = 1 << 22  # elements; 16 MiB in fp32 for each tensor at hand, a whole number of blocks
assert _STRETCH % BLOCK == 0


@dataclass
class State:
    """Of one parameter's flat local part."""

    exp_avg: Kept
    exp_avg_sq: Kept
    step: Tensor


class LeanAdamW:
    def __init__(
        self, betas: tuple[float, float], eps: float, moments: torch.dtype | None, seed: int, device: torch.device
    ) -> None:
        """`moments`: what they are kept in; None: eight bits."""
        self._betas, self._eps, self._moments, self._seed = betas, eps, moments, seed
        self._count = torch.zeros((), dtype=torch.float32, device=device)  # of all parameters: they step together

    def new_state(self, count: int, device: torch.device) -> State:
        if self._moments is None:
            return State(EightBit(count, True, device), EightBit(count, False, device), self._count)
        mean, square = (torch.zeros(count, dtype=self._moments, device=device) for _ in range(2))
        return State(mean, square, self._count)

    def begin(self, lr: float, number: int, finite: Tensor) -> None:
        """A step of all parameters. `number`: its place in the run, which the randomness follows; `finite`: a bool
        scalar on the device, so that the host need not know: if it is false, nothing changes."""
        b1, b2 = self._betas
        self._number, self._finite = number, finite
        self._count += finite
        count = self._count.clamp(min=1)
        self._rate, self._lr = -lr / (1 - b1**count) * finite, lr * finite
        self._root = torch.sqrt(1 - b2**count)
        self._to_mean, self._keep = (1 - b1) * finite, 1 - (1 - b2) * finite

    def step(
        self, name: str, weights: Tensor, gradient: Tensor, state: State, start: int, decay: float, clip: Tensor
    ) -> None:
        """One parameter's flat local part, which begins at its element `start`. `clip`: a factor, scalar fp32."""
        new = 1 - self._betas[1]
        for part in stretches(len(weights), _STRETCH):
            place = (start + part.start, part.stop - part.start)
            noise = _Noise(self._seed, self._number, name, *place, weights.device)
            values, g = weights[part].float(), torch.where(self._finite, gradient[part].float() * clip, 0.0)
            mean = state.exp_avg[part].float().lerp(g, self._to_mean)
            square = state.exp_avg_sq[part].float().mul(self._keep).addcmul_(g, g, value=new)
            _write(state.exp_avg, part, mean, noise, "exp_avg")
            _write(state.exp_avg_sq, part, square, noise, "exp_avg_sq")
            values.mul_(1 - self._lr * decay)
            values.addcdiv_(mean.mul_(self._rate), square.sqrt_().div_(self._root).add_(self._eps))
            _write(weights, part, values, noise, "weights")


def stretches(count: int, size: int) -> Iterator[slice]:
    """Flat values piece by piece: what is made of each on the way is small."""
    for start in range(0, count, size):
        yield slice(start, min(count, start + size))


def _write(kept: Kept, part: slice, values: Tensor, noise: _Noise, kind: str) -> None:
    if isinstance(kept, EightBit):
        kept.write(part.start, values)
    else:
        kept[part] = values if kept.dtype == torch.float32 else rounded(values, noise.bits(kind))


def rounded(values: Tensor, bits: Tensor) -> Tensor:
    """fp32 -> bf16, up with the probability of the part that is cut off; `bits`: int32 in [0, 65536) for each."""
    return ((values.view(torch.int32) + bits) & -65536).view(torch.float32).bfloat16()


@dataclass(frozen=True)
class _Noise:
    seed: int
    step: int
    name: str
    start: int
    count: int
    device: torch.device

    def bits(self, kind: str) -> Tensor:
        """16 random bits for each element: murmur3's finalizer over its place and a key."""
        digest = xxhash.xxh3_64_intdigest(f"{self.seed}/{self.step}/{self.name}/{kind}".encode())
        place = torch.arange(self.start, self.start + self.count, device=self.device).int()
        x = place.mul_(_signed(digest >> 32 | 1)).add_(_signed(digest & 0xFFFFFFFF))
        x ^= (x >> 16) & 0xFFFF  # a logical shift: int32's own keeps the sign
        x *= _signed(0x85EBCA6B)
        x ^= (x >> 13) & 0x7FFFF
        x *= _signed(0xC2B2AE35)
        return (x >> 16) & 0xFFFF


def _signed(value: int) -> int:
    """The int32 of the same 32 bits."""
    return value - (1 << 32) if value >> 31 else value
