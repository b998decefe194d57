"""TensorBoard over all attempts: a resumed attempt's curve replaces what lies beyond the point where it resumed."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

_TAGS = {
    "loss": "loss/train",
    "evaluation_loss": "loss/held-out",
    "penalty": "loss/forgetting penalty",
    "lr": "optimizer/learning rate",
    "grad_norm": "optimizer/gradient norm",
    "tokens_per_second": "speed/tokens per second",
    "useful_tokens_per_second": "speed/useful tokens per second",
    "mfu": "speed/MFU",
    "seconds_p50": "speed/seconds a step, median",
    "seconds_p95": "speed/seconds a step, 95 %",
    "data_wait_seconds": "speed/seconds without data",
    "memory_bytes": "memory/peak bytes",
}


def tag(name: str) -> str:
    """Where a value stands on the board: TensorBoard groups by what is before the slash. A held-out set's name follows
    a slash of its own: `evaluation_loss/books`."""
    value, _, of = name.partition("/")
    return f"{_TAGS.get(value, value)}{f' {of}' if of else ''}"


class Board:
    def __init__(self, folder: Path, first_step: int, active: bool) -> None:
        self._writer: Any = None
        if active:
            from tensorboard.compat.proto.summary_pb2 import Summary  # rank 0 alone pays for these imports
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder), purge_step=first_step)
            self._summary = Summary

    def __enter__(self) -> Board:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._writer is not None:
            with suppress(OSError):
                self._writer.close()

    def flush(self) -> None:
        """What was added is in the file: a kill from here on loses nothing of it."""
        if self._writer is not None:
            with suppress(OSError):
                self._writer.flush()

    def add(self, step: int, **values: float) -> None:
        """One record for all of them: add_scalar writes one for each, which takes twice as long.

        A full disk must not end the training: this attempt's curves end there.
        """
        if self._writer is not None:
            parts = [self._summary.Value(tag=tag(name), simple_value=value) for name, value in values.items()]
            with suppress(OSError):
                self._writer.file_writer.add_summary(self._summary(value=parts), step)
