"""Tests wait for states, never for times."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(condition: Callable[[], T], what: str = "", seconds: float = 120.0) -> T:
    """The first truthy value of `condition`; fails when none comes in `seconds`."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"waited {seconds:.0f} s in vain{f' for {what}' if what else ''}"
        time.sleep(0.01)
    return value
