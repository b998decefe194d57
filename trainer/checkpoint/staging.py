"""Where the state is copied to, so that it may change while it is written."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from threading import Thread

import torch
from torch import Tensor

from trainer.checkpoint.image import Image
from trainer.checkpoint.node_memory import NodeMemory
from trainer.host import memory_left
from trainer.runtime import Runtime

CHUNK = 64 << 20  # bytes of the small buffer


class Staging:
    """One buffer for a rank's file, made once and used again; a small one on every rank where a node has no room."""

    def __init__(self, size: int, runtime: Runtime, memory: NodeMemory) -> None:
        """Collective. `size`: of this rank's file."""
        self._memory = memory
        left = memory_left()
        short = [said for said in runtime.gather((size, left) if _lacks(size, left, runtime) else None) if said]
        self.lacking: str | None = None
        """What is missing, in words; None: the training goes on while its state is written."""
        if short:
            wanted, left = min(short, key=lambda said: said[1])
            self.lacking = f"{wanted / 1e9:.1f} GB of memory a rank, and {left / 1e9:.1f} GB are left on a node"
        kept = None if short else memory.buffer(size)
        self._buffer = _pinned(_new(CHUNK if short else size) if kept is None else kept, runtime)
        self._touching = Thread(target=self._touch, name="staging", daemon=True)
        self._touching.start()

    def _touch(self) -> None:
        """The kernel hands out the pages now, and not in the first save."""
        for part in self._buffer.split(CHUNK):
            part.numpy().fill(0)

    def take(self, image: Image) -> Iterator[memoryview]:
        """The file's bytes. With `lacking` they are read from the state itself, when they are asked for."""
        self._touching.join()
        self._memory.change()
        return image.stream(self._buffer) if self.lacking else image.copy_to(self._buffer)


def _new(size: int) -> Tensor:
    """It begins with a page, as what is written past the page cache has to."""
    return torch.frombuffer(mmap.mmap(-1, size), dtype=torch.uint8)


def _pinned(buffer: Tensor, runtime: Runtime) -> Tensor:
    if runtime.device.type == "cuda":  # where it is refused, copies to it are slower, and no worse
        torch.cuda.cudart().cudaHostRegister(buffer.data_ptr(), len(buffer), 0)
    return buffer


def _lacks(size: int, left: int, runtime: Runtime) -> bool:
    """The training, too, has to grow: half of what is left is its own."""
    return size * runtime.local_world_size > left // 2
