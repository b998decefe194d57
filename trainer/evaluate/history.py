"""What a run has cost and what it has kept, from the files in its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from durable import read_lines
from trainer.records import events

Event = dict[str, Any]


class Cost(NamedTuple):
    hours: float
    """Of all its devices together, from the start of each attempt's ranks to their end."""
    device: str
    """As the driver calls it; `cpu`."""
    ranks: int
    """Of the last attempt."""
    attempts: int
    memory: int
    """Bytes: the peak of rank 0; on the CPU what its process had resident."""

    @property
    def unit(self) -> str:
        return "rank-hours" if self.device == "cpu" else "GPU-hours"


class Kept(NamedTuple):
    """Loss of a held-out set."""

    before: float
    first_step: int
    after: float
    last_step: int


def cost(run_dir: Path) -> Cost | None:
    """None: nothing was trained here yet."""
    told = events.read(run_dir)
    starts = [event for event in told if event["event"] == "resume"]
    if not starts:
        return None
    world = {event["epoch"]: int(event.get("world_size", 1)) for event in starts}
    # An attempt that died before it said how many ranks it had, had as many as the last.
    seconds = sum(s * world.get(epoch, starts[-1].get("world_size", 1)) for epoch, s in _seconds(run_dir, told).items())
    memory = max((int(event.get("memory_bytes", 0)) for event in told if event["event"] == "step"), default=0)
    device, ranks = str(starts[-1].get("device", "cpu")), world[starts[-1]["epoch"]]
    return Cost(seconds / 3600, device, ranks, len(world), memory)


def _seconds(run_dir: Path, told: list[Event]) -> dict[int, float]:
    """Of each attempt: as its supervisor wrote, else from its first event to its last."""
    out: dict[int, float] = {}
    for epoch in {event["epoch"] for event in told}:
        times = [event["time"] for event in told if event["epoch"] == epoch]
        out[epoch] = max(times) - min(times)
    ends = read_lines(run_dir / "attempts.jsonl")
    return {**out, **{end["attempt"]: end["end"] - end["start"] for end in reversed(ends)}}


def losses(run_dir: Path) -> dict[str, Kept]:
    """Of each held-out set, by name ("" where the recipe gives none), at its first evaluation and at its last."""
    out: dict[str, Kept] = {}
    for event in events.in_line(events.read(run_dir)):
        if event["event"] == "evaluation":
            for name, loss in (event.get("losses") or {"": event["loss"]}).items():
                if loss is not None:
                    first = out.get(name, Kept(loss, event["step"], loss, event["step"]))
                    out[name] = first._replace(after=loss, last_step=event["step"])
    return out
