"""Ranks that compute slower than the others: all wait for them in every step. Rank 0 hears each one's own seconds."""

from __future__ import annotations

from statistics import median

WINDOW = 200  # steps that are judged together
SLOW = 1.15  # times the median


class Stragglers:
    def __init__(self, hosts: list[str]) -> None:
        """`hosts`: of each rank."""
        self._hosts = hosts
        self._forget()

    def _forget(self) -> None:
        self._steps, self._seconds = 0, [0.0] * len(self._hosts)

    def saw_step(self, seconds: list[float]) -> list[tuple[int, str, float]]:
        """Each rank's own seconds of a step. Returns the slow ones once a window: rank, host, times the median."""
        self._seconds = [a + b for a, b in zip(self._seconds, seconds, strict=True)]
        self._steps += 1
        if self._steps < WINDOW:
            return []
        total, middle = self._seconds, median(self._seconds)
        self._forget()
        return [(rank, self._hosts[rank], own / middle) for rank, own in enumerate(total) if own > SLOW * middle > 0]
