"""TensorBoard over all attempts: a resumed attempt's curve replaces what lies beyond the point where it resumed."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any


class Board:
    def __init__(self, folder: Path, first_step: int, active: bool) -> None:
        self._writer: Any = None
        if active:
            from torch.utils.tensorboard import SummaryWriter  # rank 0 alone pays for its import

            self._writer = SummaryWriter(str(folder), purge_step=first_step)

    def __enter__(self) -> Board:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._writer is not None:
            self._writer.close()

    def add(self, step: int, **values: float) -> None:
        for name, value in values.items():
            if self._writer is not None:
                self._writer.add_scalar(name, value, step)
