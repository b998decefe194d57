"""Steps whose gradient is not finite: skipped on all ranks alike, counted, and the end of the run when they repeat.

The norm is that of the whole gradient, so all ranks see the same one and nobody has to be asked.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from statistics import median
from typing import Any

IN_A_ROW = 3
"""Steps: after so many the attempt goes back to its last checkpoint."""
SPIKE = 10
"""Times the median of the last losses: worth an event."""
_RECENT = 100


class Diverged(Exception):
    """The gradient is not finite in several steps in a row: the weights of the last checkpoint count."""

    def __init__(self, message: str, again: bool) -> None:
        super().__init__(message)
        self.again = again
        """An earlier attempt has ended at the same step."""


@dataclass
class Guard:
    skipped: list[int] = field(default_factory=list)
    """The last steps, as long as they were skipped, up to now."""
    _losses: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT))

    def saw_norm(self, step: int, norm: float) -> None:
        """Right after a step: whether it was one."""
        self.skipped = [] if math.isfinite(norm) else [*self.skipped, step]

    def saw_loss(self, loss: float) -> float | None:
        """By how many times a loss exceeds the median of those before, when that is worth an event."""
        usual = median(self._losses) if len(self._losses) == _RECENT else None
        self._losses.append(loss)
        return loss / usual if usual and loss > SPIKE * usual else None


def happened_before(events: list[dict[str, Any]], step: int) -> bool:
    """Whether an earlier attempt gave up at this step, the first one that was skipped."""
    return any(event.get("event") == "diverged" and event.get("step") == step for event in events)
