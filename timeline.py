"""Where an attempt's time went, from what its trainer told: one account for `status` and for the report. Standard
library only: both halves use it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

PARTS = ("steps", "evaluation", "saves", "start", "lost", "leaving", "queue")
STEPS, EVALUATION, SAVES, START, LOST, LEAVING, QUEUE = range(len(PARTS))
_MARKS = {"resume": START, "begin": START, "evaluation": EVALUATION, "stop": STEPS, "done": LEAVING}
"""What the time before such an event was spent on; other events interrupt nothing."""


def split(
    steps: Sequence[tuple[float, int, bool]], told: Sequence[Mapping[str, Any]], start: float, end: float, over: bool
) -> list[float]:
    """Seconds of each of PARTS from `start` to `end`: what is told at a moment has taken the time since the last word.

    `steps`: when each was told, its number, and whether it counts. `told`: the attempt's other events. `over`: it has
    ended at `end`; else that was its last word.
    """
    marks = [(time, STEPS if counts else LOST) for time, _, counts in steps if time == time]  # one without is nan
    timed = (event for event in told if "time" in event)
    marks += [(float(event["time"]), kind) for event in timed if (kind := _kind(event)) is not None]
    if over:
        kinds = {event["event"] for event in told}
        marks.append((end, LEAVING if kinds & {"stop", "done"} else LOST if steps or "begin" in kinds else START))
    parts, now, kind = [0.0] * len(PARTS), start, START
    for time, kind in sorted(marks, key=lambda mark: mark[0]):
        then = min(max(time, now), end)  # clocks of two hosts differ: time never runs back, nor beyond the attempt
        parts[kind] += then - now
        now = then
    parts[kind] += end - now
    _move_stalls(parts, told, max((step for _, step, counts in steps if counts), default=0))
    return parts


def _kind(event: Mapping[str, Any]) -> int | None:
    if event["event"] == "save" and event.get("leaving"):
        return SAVES
    return _MARKS.get(str(event["event"]))


def _move_stalls(parts: list[float], told: Iterable[Mapping[str, Any]], last: int) -> None:
    """A save is written beside the steps: what they waited for it lies in the time before the next one. `last`: step
    that counts."""
    for event in told:
        if event["event"] == "save" and not event.get("leaving"):
            of = STEPS if int(event["step"]) < last else LOST
            moved = min(float(event.get("stall", 0.0)), parts[of])
            parts[of] -= moved
            parts[SAVES] += moved


def goodput(productive: float, allocated: float) -> float:
    """Share of the seconds with nodes in which optimizer steps were done that count."""
    return min(1.0, productive / allocated) if allocated > 0 else 0.0
