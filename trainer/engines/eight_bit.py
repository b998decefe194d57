"""Moments in eight bits: codes of a table that is dense near zero, and a scale for each block.

The format of Dettmers et al., 8-bit Optimizers via Block-wise Quantization (2021). What was read and is written again
unchanged keeps its codes, so a checkpoint may hold the values: the largest of a block is its scale, to the bit and with
its sign.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

BLOCK = 256
"""Elements under one scale."""


class EightBit:
    """A flat tensor of fp32 values, zero at first, kept in 1 + 4 / 256 bytes each."""

    def __init__(self, count: int, signed: bool, device: torch.device) -> None:
        self._table, self._between = _table(signed, device)
        self._count = count
        blocks = -(-count // BLOCK)
        zero = int(torch.searchsorted(self._between, torch.zeros((), device=device)))
        self.codes = torch.full((blocks * BLOCK,), zero, dtype=torch.uint8, device=device)
        self.scales = torch.zeros(blocks, dtype=torch.float32, device=device)

    def numel(self) -> int:
        return self._count

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.scales.nbytes

    def __getitem__(self, part: slice) -> Tensor:
        """The values of a range, fp32."""
        start, stop, _ = part.indices(self._count)
        first, last = start // BLOCK, -(-stop // BLOCK)
        codes = self.codes[first * BLOCK : last * BLOCK].int()
        values = self._table[codes].view(-1, BLOCK) * self.scales[first:last, None]
        return values.view(-1)[start - first * BLOCK : stop - first * BLOCK]

    def write(self, start: int, values: Tensor) -> None:
        """`start`: where a block begins; the values end where one ends, or with the tensor."""
        assert start % BLOCK == 0
        rest = -len(values) % BLOCK
        blocks = torch.nn.functional.pad(values, (0, rest)).view(-1, BLOCK)
        scales = blocks.gather(1, blocks.abs().argmax(1, keepdim=True))[:, 0]  # with its sign: it has a code then
        shares = blocks / torch.where(scales != 0, scales, 1)[:, None]
        first = start // BLOCK
        self.scales[first : first + len(blocks)] = scales
        codes = torch.searchsorted(self._between, shares.view(-1)).to(torch.uint8)
        self.codes[start : start + len(codes)] = codes

    def copy_(self, values: Tensor) -> None:
        self.write(0, values.to(self.codes.device))


@cache
def _table(signed: bool, device: torch.device) -> tuple[Tensor, Tensor]:
    """256 shares of a block's largest value in ascending order, and the midpoints between them."""
    shares = [0.0, 1.0]
    for exponent in range(7):
        count = 2**exponent if signed else 2 ** (exponent + 1)
        edges = torch.linspace(0.1, 1, count + 1, dtype=torch.float64)
        middles = (10.0 ** (exponent - 6) * (edges[1:] + edges[:-1]) / 2).tolist()
        shares += [*middles, *(-middle for middle in middles)] if signed else middles
    table = torch.tensor(sorted(shares), dtype=torch.float32)
    return table.to(device), ((table[1:] + table[:-1]) / 2).to(device)


Kept = Tensor | EightBit
"""Flat values as they lie in memory: a slice of them is a tensor, and `copy_` sets them all."""
