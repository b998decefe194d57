"""How the ranks of an attempt ended: by their exit files, by what the trainer told before, and by NCCL's last words."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from durable import read_lines
from slurm.cause import RankExit
from slurm.logs import first_failure, rank_log
from slurm.rundir import RunDir
from slurm.step import read_exits

# NCCL's own watchdog throws in a thread of C++, which ends the process by SIGABRT, under a shell by its code for it.
_ABORTED = (signal.SIGABRT, 128 + signal.SIGABRT)
_NCCL_ABORT = b"Watchdog caught collective operation timeout"
_TAIL_BYTES = 1 << 18  # its stacks come after the words
_MORE = "ask for more (--mem), or need less: a smaller micro batch, fewer data workers"


def read_ends(run: RunDir, epoch: int, world_size: int) -> list[RankExit]:
    """The end of every rank."""
    found = read_exits(run.attempt_dir(epoch))
    told = {event.get("rank") for event in events(run, epoch, "oom")}
    out = []
    for rank in range(world_size):
        end = found.get(rank, {})
        oom, hung = end.get("oom") or rank in told, _nccl_gave_up(run, epoch, rank, end)
        known = "oom" if oom else "hang" if hung else "asked" if end.get("asked") else None
        out.append(RankExit(rank, end.get("code"), end.get("signal"), known))
    return out


def _nccl_gave_up(run: RunDir, epoch: int, rank: int, end: dict[str, Any]) -> bool:
    ended = end.get("signal") or end.get("code")
    return ended in _ABORTED and _NCCL_ABORT in _tail(rank_log(run, epoch, rank))


def _tail(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
            return file.read(_TAIL_BYTES)
    except FileNotFoundError:
        return b""


def events(run: RunDir, epoch: int, kind: str) -> list[dict[str, Any]]:
    """What the trainer told of this kind in an attempt."""
    return [event for event in read_lines(run.events) if (event.get("event"), event.get("epoch")) == (kind, epoch)]


# --- one line for people --------------------------------------------------------------------------------


def failure(run: RunDir, epoch: int, cause: str, exits: list[RankExit]) -> str:
    """What failed first, what to change, and where to read on."""
    first = next((end for end in exits if end.known == cause), exits[first_failure(run, epoch)])
    log = rank_log(run, epoch, first.rank)
    say = {"oom": _oom, "hang": _hang}.get(cause)
    said = say(run, epoch, first) if say else str(first)
    return f"{said}; see {(log if log.exists() else log.parent).relative_to(run.path)}"


def _oom(run: RunDir, epoch: int, first: RankExit) -> str:
    told = [event for event in events(run, epoch, "oom") if event.get("rank") == first.rank]
    if not told:
        end = read_exits(run.attempt_dir(epoch))[first.rank]
        held = f" (it held {gigabytes(end['memory'])})" if end.get("memory") else ""
        return f"{first} on {end['host']}: the kernel ended it, no memory was left{held}: {_MORE}"
    event = told[-1]
    total, phase = gigabytes(event["allocated"]), event["phase"]
    held = f": {event['held']}" if "held" in event else ""
    if event["device"] == "cpu":
        less = f"; or {event['advice']}" if "advice" in event else ""
        return f"{first}: no memory was left in the phase {phase} (it held {total}{held}): {_MORE}{less}"
    reserved = gigabytes(event["reserved"])
    less = event.get("advice", "lower train.micro_batch_size, or spread the model over more GPUs")
    return (
        f"{first}: no GPU memory was left in the phase {phase} ({total} allocated, {reserved} reserved{held}): {less}"
    )


def _hang(run: RunDir, epoch: int, first: RankExit) -> str:
    logs = run.attempt_dir(epoch).relative_to(run.path)
    told = events(run, epoch, "hang")
    if not told:
        what = f"NCCL's watchdog ended it; its record in {logs}/nccl-rank-*" if first.known else "it hangs"
        return f"{first}: {what}"
    event = told[0]
    named = [("without stacks: ranks", event.get("missing")), ("fewer collectives than others: ranks", event["behind"])]
    who = "".join(f"; {what} {', '.join(map(str, ranks))}" for what, ranks in named if ranks)
    silent = f"no sign of life for {event['seconds']:.0f} s in the phase {event['phase']}"
    return f"{first}: {silent}; stacks in {logs}/rank-*.stacks{who}"


def gigabytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB"
