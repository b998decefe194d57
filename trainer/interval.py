"""When the next save is due."""

from __future__ import annotations

from typing import Any


def first_save(events: list[dict[str, Any]], epoch: int, step: int) -> int | None:
    """The step after which this attempt saves first, whatever the interval says; None: the interval decides.

    An attempt that resumes where the last one did follows one that has saved nothing: it was preempted or killed before
    its save. So this one saves after half of the steps that that one came to, and one that is cut as short gets on.
    """
    last = [event for event in events if event.get("epoch") == epoch - 1]
    resumed = next((event["step"] for event in last if event["event"] == "resume"), None)
    if resumed != step:
        return None
    if any(event["event"] == "stop" for event in last) and not any(event["event"] == "step" for event in last):
        return None  # it was asked to leave before it had done anything
    reached: int = max((event["step"] for event in last if event["event"] == "step"), default=step)
    return step + max(1, (reached - step) // 2)
