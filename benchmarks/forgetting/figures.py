"""What is forgotten and what is learnt: arithmetic over held-out losses, in nats a token."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Course:
    """Held-out losses of one run on the domain."""

    steps: list[int]
    general: list[float]
    domain: list[float]
    step_seconds: float
    """Median."""

    @property
    def rise(self) -> float:
        """Of the general loss, from before the first step to after the last one."""
        return self.general[-1] - self.general[0]

    @property
    def gain(self) -> float:
        """Fall of the domain loss."""
        return self.domain[0] - self.domain[-1]
