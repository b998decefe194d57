"""Why an attempt ended, and what happens next. Pure: facts in, words out.

The oracle table was measured on a real Slurm (22.05): a job that COMPLETES without TimeLimit, NodeDown, a preemption
or one more restart was cancelled by its user.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from slurm.commands import JobFacts
from slurm.exits import AGREED, BY_A_STOP, CONFIG, CONTINUE, DONE, FENCED, HANG, NO_PROGRESS, STOPPED

_ATTEMPTS_WITHOUT_PROGRESS = 3
FREE = ("preemption", "node_failure", "requeued")
"""Causes that no budget of failures counts: the program did nothing wrong."""
FAILURES = ("crash", "oom", "hang")
_WORDS = {"deadline": "timeout", "budget": "budget"}
"""Reasons of a stop that are causes of their own."""
_FIRST_DELAY, _LONGEST_DELAY = 2.0, 60.0  # seconds
_STRIKES = 2
_EXCLUDED_SECONDS = 24 * 3600


@dataclass(frozen=True)
class RankExit:
    """How one rank ended; without a code and a signal it left no record (its node died, or it was killed with us)."""

    rank: int
    code: int | None = None
    signal: int | None = None
    known: str | None = None
    """`oom`, `hang`, or `asked`: by a stop signal that its shim had passed on; more than code and signal tell."""

    @property
    def status(self) -> int | None:
        """Its code; of a signal: the negative number."""
        return self.code if self.signal is None else -self.signal

    @property
    def crashed(self) -> bool:
        return self.code not in (*AGREED, CONFIG)

    @property
    def unknown(self) -> bool:
        return self.code is None and self.signal is None

    def __str__(self) -> str:
        if self.signal is not None:
            return f"rank {self.rank}: signal {self.signal}"
        return f"rank {self.rank}: {'no exit record' if self.unknown else f'exit {self.code}'}"


def scheduler_cause(facts: JobFacts | None, restart_count: int) -> str | None:
    """What Slurm itself does to the job; None: nothing, the job just runs."""
    if facts is None:
        return None
    ending = facts.state not in ("RUNNING", "PENDING", "CONFIGURING", "SUSPENDED")
    if facts.preempt_time is not None:
        return "preemption"
    if facts.state == "NODE_FAIL" or facts.reason == "NodeDown":
        return "node_failure"
    if facts.state == "TIMEOUT" or (ending and facts.reason == "TimeLimit"):
        return "timeout"
    if facts.restarts > restart_count:
        return "requeued"
    if facts.state in ("CANCELLED", "COMPLETING"):
        return "cancel"
    return None


def predecessor_cause(facts: JobFacts) -> str:
    """Why a job that has ended did so, as its successor asks: a scancel shows as CANCELLED even after a preemption."""
    by_state = {"CANCELLED": "cancel", "TIMEOUT": "timeout", "PREEMPTED": "preemption", "NODE_FAIL": "node_failure"}
    by_state |= {"OUT_OF_MEMORY": "oom"}
    by_reason = {"TimeLimit": "timeout", "NodeDown": "node_failure"}  # of one whose end takes for ever
    told = by_state.get(facts.state) or ("preemption" if facts.preempt_time is not None else None)
    return told or by_reason.get(facts.reason, "crash")


def foreign_cause(exits: Sequence[RankExit], scheduler: str | None, stop_reason: str | None) -> str:
    """The cause of a foreign command's attempt: after a word to stop, exit 0 and death by its signal mean that it
    heard."""
    # Peers of a rank without a handler lose their connection to it before they hear themselves.
    statuses = {exit.status for exit in exits}
    heard = statuses <= {DONE, CONTINUE} or not statuses.isdisjoint(BY_A_STOP)
    if heard and scheduler is not None:
        return scheduler
    if heard and stop_reason is not None:
        return {"stop file": "stop", **_WORDS}.get(stop_reason, stop_reason.split()[0])
    asked = [exit for exit in exits if exit.known == "asked"]
    if asked and all(exit in asked or exit.status in (DONE, CONTINUE) for exit in exits):
        return "signal"  # that went to the ranks alone
    return attempt_cause(exits, scheduler, stop_reason)


def attempt_cause(exits: Sequence[RankExit], scheduler: str | None, stop_reason: str | None) -> str:
    """The cause of an attempt from the ranks' exits, Slurm's word and the reason of the agreed stop, if any."""
    codes = {exit.code for exit in exits}
    for code, cause in ((CONFIG, "config"), (FENCED, "fenced"), (STOPPED, "stop")):
        if code in codes:
            return cause
    if codes == {DONE}:
        return "done"
    if scheduler is not None:
        return scheduler
    if any(exit.crashed for exit in exits):
        known = {exit.known for exit in exits}  # an oom first: its peers may hang then
        return "oom" if "oom" in known else "hang" if "hang" in known or HANG in codes else "crash"
    return _WORDS.get(stop_reason or "", "signal")


def refused_for_the_end(words: str) -> str | None:
    """The cause that srun's words mean when it starts no step since the job is over, and nobody else has said so, since
    the controller does not answer us. None: they mean something else."""
    found = {"has expired": "timeout", "already completing or completed": "requeued"}
    return next((cause for said, cause in found.items() if said in words), None)


class Next(Enum):
    FINISH = "the run is done"
    STOP = "the run ends unfinished"
    HERE = "new ranks in this allocation"
    NEXT_JOB = "the next job goes on"
    LEAVE = "another attempt owns the run"


@dataclass(frozen=True)
class Decision:
    next: Next
    reason: str = ""
    code: int = 0
    cause: str = ""
    """Of a run that ends unfinished, when it is not the last attempt's."""
    delay: float = 0.0
    """Seconds before new ranks start in this allocation."""


def decide(
    attempts: Sequence[Mapping[str, Any]],
    max_attempts: int | None = None,
    gpu_hours: float = 0.0,
    max_gpu_hours: float | None = None,
    steps_known: bool = True,
) -> Decision:
    """What follows the last of `attempts` (each with cause, committed_step, first_step).

    Of a foreign command progress may be known (`progress` of an attempt), else its time limits are no lack of it.
    """
    cause = attempts[-1]["cause"] if attempts else "signal"  # none yet: start
    match cause:
        case "done":
            return Decision(Next.FINISH)
        case "fenced":
            return Decision(Next.LEAVE)
        case "stop" | "cancel":
            return Decision(Next.STOP, "by the user's word", STOPPED)
        case "config":
            return Decision(Next.STOP, "configuration error", CONFIG)
    if max_attempts is not None and len(attempts) >= max_attempts:
        return Decision(Next.STOP, f"{len(attempts)} attempts of --max-attempts={max_attempts}", STOPPED, "budget")
    if max_gpu_hours is not None and (gpu_hours >= max_gpu_hours or cause == "budget"):
        spent = f"{gpu_hours:.2f} GPU-hours of --max-gpu-hours={max_gpu_hours:g}"
        return Decision(Next.STOP, spent, STOPPED, "budget")
    if steps_known and attempts and f"exit {NO_PROGRESS}" in attempts[-1].get("exits", ()):
        return Decision(Next.STOP, str(attempts[-1].get("reason")), NO_PROGRESS, "no progress")
    if _no_progress(attempts, steps_known):
        last = attempts[-1].get("reason")
        why = f"{_ATTEMPTS_WITHOUT_PROGRESS} attempts without a new committed step{f', the last: {last}' * bool(last)}"
        return Decision(Next.STOP, why, NO_PROGRESS, "no progress")
    here = cause in (*FAILURES, "signal")
    return Decision(Next.HERE, delay=_delay(attempts)) if here else Decision(Next.NEXT_JOB)


def _no_progress(attempts: Sequence[Mapping[str, Any]], steps_known: bool) -> bool:
    last = attempts[-_ATTEMPTS_WITHOUT_PROGRESS:]
    return len(last) == _ATTEMPTS_WITHOUT_PROGRESS and all(_in_vain(attempt, steps_known) for attempt in last)


def _in_vain(attempt: Mapping[str, Any], steps_known: bool) -> bool:
    told = attempt.get("progress") is not None
    counted = (*FAILURES, *["timeout"] * (steps_known or told), *["signal"] * told)
    # Where a site lets no job keep away from a node, or all nodes look unfit, this must end.
    return not _advanced(attempt) and (attempt["cause"] in counted or bool(attempt.get("unfit")))


def _advanced(attempt: Mapping[str, Any]) -> bool:
    told = attempt.get("progress")  # of a foreign command; None: nothing tells it
    return bool(attempt["committed_step"] > attempt["first_step"] if told is None else told)


def cut_short(attempts: Sequence[Mapping[str, Any]]) -> bool:
    """Slurm took the nodes from the last attempt before it had committed a step: the next one saves sooner."""
    last = attempts[-1] if attempts else None
    return last is not None and last["cause"] in FREE and last["committed_step"] <= last["first_step"]


def in_a_row(attempts: Sequence[Mapping[str, Any]], which: Callable[[Mapping[str, Any]], bool]) -> int:
    """How many of the last attempts are such."""
    return next((i for i, attempt in enumerate(reversed(attempts)) if not which(attempt)), len(attempts))


def _delay(attempts: Sequence[Mapping[str, Any]]) -> float:
    """A first failure starts anew at once; what fails again may wait for something: a file system, a GPU, a port. So
    may a program that leaves by itself, and asks to be started again."""
    failures = in_a_row(attempts, _may_wait)
    return 0.0 if failures < 2 else min(_LONGEST_DELAY, _FIRST_DELAY * 2.0 ** (failures - 2))


def _may_wait(attempt: Mapping[str, Any]) -> bool:
    return attempt["cause"] in FAILURES or attempt["cause"] == "signal" and not _advanced(attempt)


def failed_node(cause: str, exits: Sequence[RankExit], first: int | None, hosts: Sequence[str]) -> str | None:
    """The node that an attempt failed on, as far as its ranks' ends tell; `first`: the rank that failed first."""
    each = len(exits) // len(hosts)
    if cause in ("crash", "hang"):
        return None if first is None or exits[first].unknown else hosts[first // each]
    ranks = {host: exits[i * each : (i + 1) * each] for i, host in enumerate(hosts)}
    silent = [host for host, ends in ranks.items() if all(end.unknown for end in ends)]
    return silent[0] if cause == "node_failure" and len(silent) == 1 else None


def bad_nodes(attempts: Sequence[Mapping[str, Any]], now: float) -> list[str]:
    """Nodes on which attempts failed twice within a day, or that were unfit once: the next job keeps away from them."""
    recent = [attempt for attempt in attempts if attempt["end"] > now - _EXCLUDED_SECONDS]
    strikes: Counter[str | None] = Counter()
    for attempt in recent:
        strikes[attempt.get("failed_on")] += _STRIKES if attempt.get("unfit") else 1
    return sorted(node for node, count in strikes.items() if node and count >= _STRIKES)
