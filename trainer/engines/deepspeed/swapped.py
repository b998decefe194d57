"""What DeepSpeed's swapper keeps on a disk: its files as flat values, and the operator that moves them."""

from __future__ import annotations

import os
import re

import numpy as np
import torch
from torch import Tensor

from settings import ConfigError


class Swapped:
    """A range of fp32 values in a file that is swapped out. DeepSpeed's own accessors (safe_get_local_...) read all of
    a sub-group, 12 bytes for each of 1e9 elements, to hand out one parameter; the file is read where that lies."""

    nbytes = 0
    """Of memory."""

    def __init__(self, path: str, start: int, count: int) -> None:
        self._path, self._start, self._count = path, start, count

    def numel(self) -> int:
        return self._count

    def __getitem__(self, part: slice) -> Tensor:
        """The values of a range, until the next step: mapped, so that a save never holds a rank's share in memory."""
        start, stop, _ = part.indices(self._count)
        if start >= stop:
            return torch.empty(0)
        at = 4 * (self._start + start)
        return torch.from_numpy(np.memmap(self._path, np.float32, "c", at, (stop - start,)))

    def copy_(self, values: Tensor) -> None:
        assert len(values) == self._count
        left = memoryview(values.detach().float().cpu().contiguous().numpy().tobytes())
        with open(self._path, "r+b", buffering=0) as file:
            file.seek(4 * self._start)
            while left:
                left = left[file.write(left) :]
            os.fdatasync(file.fileno())  # DeepSpeed reads past the page cache


def load_async_io() -> None:
    """Build DeepSpeed's operator for swapping, or find it built. Raises ConfigError.

    The build takes minutes, once for a software environment; the ranks that share its folder wait for one of them.
    """
    from deepspeed.ops.op_builder import AsyncIOBuilder

    try:
        AsyncIOBuilder().load(verbose=False)
    except Exception as error:  # whatever a compiler, a linker or an import has to say
        raise ConfigError(
            f"engine.config: device=nvme: DeepSpeed's async_io cannot be loaded on {os.uname().nodename}; it takes "
            f"a C++ compiler, ninja and libaio (libaio-dev on Debian, libaio-devel on others): {_why(error)}"
        ) from None


def _why(error: Exception) -> str:
    """The one line of a compiler's output that names the error; else the first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return next((line for line in lines if re.search(r"\b(fatal )?error: ", line)), lines[0])
