"""That nothing was lost and nothing counted twice: what was checked, and what was found."""

from __future__ import annotations

from settings import ConfigError
from trainer.audit import Audit, audit
from trainer.records.events import NAME
from trainer.report.findings import Finding, Proof
from trainer.report.run import Run

SHOWN = 12
"""Problems of a kind that are named."""


def proof(run: Run) -> Proof:
    """Of the steps, the samples and the lines themselves."""
    try:
        found, why = audit(run.path, run.history, make=False), ""
    except (ConfigError, OSError) as error:
        found, why = Audit(lines=list(run.history.problems)), str(error)
    return Proof([_steps(run, found, why), _samples(found, why), _lines(run, found)], found.notes)


def _steps(run: Run, found: Audit, why: str) -> Finding:
    if why:
        return Finding("Optimizer steps", None, f"not checked: {why}")
    again = run.done_again
    redone = f"; {again:,} that an interruption cut off were done again, and count once" if again else ""
    text = f"each of {run.step:,} steps counts once, over {len(run.attempts)} attempts{redone}"
    return _judged("Optimizer steps", text, found.steps)


def _samples(found: Audit, why: str) -> Finding:
    if why or found.steps:
        reason = why or "the steps are not whole"
        return Finding("Samples", None, f"not checked: {reason}")
    return _judged("Samples", found.summary, found.samples)


def _lines(run: Run, found: Audit) -> Finding:
    told, end = run.history, (run.done or {}).get("last_event")
    problems = list(found.lines)
    if not told.chained and not problems:
        return Finding("Records", None, f"not checked: the lines of {NAME} carry no hashes")
    if end and end != told.last_hash:
        problems.append(f"the last line of {NAME} is not the one that DONE names")
    torn = f"; {len(told.torn)} torn by a kill {'is' if len(told.torn) == 1 else 'are'} dropped" if told.torn else ""
    closed = ", and DONE that of the last" if end else ""
    text = f"each of {told.lines:,} lines of {NAME} carries the hash of the one before{closed}{torn}"
    return _judged("Records", text, problems)


def _judged(what: str, text: str, problems: list[str]) -> Finding:
    if not problems:
        return Finding(what, True, text)
    more = [f"and {len(problems) - SHOWN:,} more"] if len(problems) > SHOWN else []
    return Finding(what, False, "wrong", [*problems[:SHOWN], *more])
