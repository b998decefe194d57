"""How the ranks of an attempt ended: by their exit files, by what the trainer told before, and by NCCL's last words."""

from __future__ import annotations

import signal
from typing import Any

import timeline
from durable import read_lines
from slurm.causes.cause import RankExit
from slurm.causes.failures import failure as failure_of
from slurm.causes.failures import first_failure, job_log, rank_log, tail
from slurm.causes.logs import unfit_node
from slurm.rundir import RunDir
from slurm.step import read_exits

# NCCL's own watchdog throws in a thread of C++, which ends the process by SIGABRT, under a shell by its code for it.
_ABORTED = (signal.SIGABRT, 128 + signal.SIGABRT)
_NCCL_ABORT = "Watchdog caught collective operation timeout"
_MORE = "ask for more (--mem), or need less: a smaller micro batch, fewer data workers"


def read_ends(run: RunDir, epoch: int, world_size: int) -> list[RankExit]:
    """The end of every rank."""
    found = read_exits(run.attempt_dir(epoch), world_size)
    told = {event.get("rank") for event in events(run, epoch, "oom")}
    out = []
    for rank in range(world_size):
        end = found.get(rank, {})
        oom, hung = end.get("oom") or rank in told, _nccl_gave_up(run, epoch, rank, end)
        known = "oom" if oom else "hang" if hung else "asked" if end.get("asked") else None
        out.append(RankExit(rank, end.get("code"), end.get("signal"), known))
    return out


def unfit(run: RunDir, epoch: int, job_id: str | None, log_start: int) -> tuple[str, str] | None:
    """The node that its own shim has found to be no place for ranks, and why: by its ranks' files, and where the run's
    folder took none from there, by its words in the job's log."""
    told = ((end["host"], end["unfit"]) for end in read_exits(run.attempt_dir(epoch)).values() if "unfit" in end)
    return next(told, None) or unfit_node(job_log(run, job_id), log_start)


def _nccl_gave_up(run: RunDir, epoch: int, rank: int, end: dict[str, Any]) -> bool:
    ended = end.get("signal") or end.get("code")
    return ended in _ABORTED and any(_NCCL_ABORT in line for line in tail(rank_log(run, epoch, rank)))


def events(run: RunDir, epoch: int, kind: str) -> list[dict[str, Any]]:
    """What the trainer told of this kind in an attempt."""
    return [event for event in _told(run, epoch) if event["event"] == kind]


def _told(run: RunDir, epoch: int) -> list[dict[str, Any]]:
    claim = run.read_claim(epoch)
    lines = read_lines(run.events, claim.events_start if claim else 0)
    return [line for line in lines if line.get("epoch") == epoch and "event" in line]


def trained(run: RunDir, epoch: int, first_step: int, start: float, end: float) -> dict[str, Any]:
    """An attempt's steps, for its record; their seconds are of those that count: up to the last one that is saved.

    Where this attempt did not resume from what the one before had saved (from the nodes' memory, or past a damaged
    checkpoint), its seconds make that good.
    """
    committed, claim = run.committed_step(), run.read_claim(epoch)
    seconds = _step_seconds(run, epoch, committed, start, end)
    resumed = claim.resume_from["step"] if claim is not None and claim.resume_from else 0
    before = next((record for record in run.attempts() if record["attempt"] == epoch - 1), None)
    if before is not None and resumed and resumed != before["committed_step"]:
        times = before["start"], before["end"]
        seconds += _step_seconds(run, epoch - 1, resumed, *times)
        seconds -= _step_seconds(run, epoch - 1, before["committed_step"], *times)
    return {"first_step": first_step, "committed_step": committed, "step_seconds": round(seconds, 3)}


def _step_seconds(run: RunDir, epoch: int, last: int, start: float, end: float) -> float:
    """`last`: the last step that counts."""
    told = _told(run, epoch)
    steps = [(event["time"], event["step"], event["step"] <= last) for event in told if event["event"] == "step"]
    others = [event for event in told if event["event"] != "step"]
    return timeline.split(steps, others, start, end, over=True)[timeline.STEPS]


# --- one line for people --------------------------------------------------------------------------------


def failure(run: RunDir, epoch: int, cause: str, exits: list[RankExit]) -> str:
    """What failed first, what to change, and where to read on."""
    first = next((end for end in exits if end.known == cause), exits[first_failure(run, epoch) or 0])
    log = rank_log(run, epoch, first.rank)
    say = {"oom": _oom, "hang": _hang}.get(cause, _crash)
    said = say(run, epoch, first)
    return f"{said}; see {(log if log.exists() else log.parent).relative_to(run.path)}"


def _crash(run: RunDir, epoch: int, first: RankExit) -> str:
    raised = failure_of(run, epoch, first.rank).exception
    return f"{first}: {raised[:200]}{'...' * (len(raised) > 200)}" if raised else str(first)


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
