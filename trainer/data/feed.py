"""Batches read ahead in a thread: a file system that takes its time holds up what needs the batch, and nothing else."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType

from trainer.data.batches import RankBatch

_AHEAD = 2  # the batch that is asked for next was begun a step before: it is there when a fast disk holds it


class Feed:
    def __init__(self, batches: Iterator[RankBatch]) -> None:
        self._batches = batches
        self._reader = ThreadPoolExecutor(1, "feed")
        self.waited = 0.0
        """Seconds since the last reading in which the loop waited for a batch, this rank's or another's."""
        self._ahead: deque[Future[RankBatch | None]] = deque(self._read() for _ in range(_AHEAD))

    def __enter__(self) -> Feed:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._reader.shutdown(wait=False, cancel_futures=True)  # a read that hangs must not keep the process

    def _read(self) -> Future[RankBatch | None]:
        return self._reader.submit(next, self._batches, None)

    def ready(self, patience: float) -> bool:
        """Whether the next batch is there, within so many seconds. Raises what the reading raised."""
        began = time.monotonic()
        read, _ = wait([self._ahead[0]], patience)  # result() would take a read that ended by ETIMEDOUT for one to come
        self.waited += time.monotonic() - began
        for one in read:
            one.result()
        return bool(read)

    def read_wait(self) -> float:
        """Seconds that were waited since the last reading."""
        waited, self.waited = self.waited, 0.0
        return waited

    @property
    def next(self) -> RankBatch | None:
        """The next batch, which is ready; None: there are no more."""
        return self._ahead[0].result()

    def take(self) -> RankBatch | None:
        """The next batch, which is ready; the one after the next is begun."""
        self._ahead.append(self._read())
        return self._ahead.popleft().result()
