"""What `status` prints: a table of many runs, all about one."""

from __future__ import annotations

import os
import pwd
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from slurm.causes.cause import FAILURES
from slurm.causes.reasons import CAUSES
from slurm.watch.run_status import RunStatus
from slurm.watch.status import summary
from slurm.watch.times import clock, duration

_COLOURS = {"running": "32", "done": "36", "waiting": "33", "interrupted": "31", "ended": "31"}
_WANTED = ("stop", "cancel", "budget")
"""Ends that its user knows of."""
_NOTHING_NEW = ("deadline", "stop file")
"""Reasons that say no more than their cause."""
_PORT = 6006
_NARROW = 28  # columns that a reason needs to be read


def as_text(found: Sequence[RunStatus], width: int | None = None, colour: bool = False) -> str:
    """`width`: of the terminal; reasons that are longer go on in the next line, below where they begin."""
    if not found:
        return "no runs yet"
    paint = _painted if colour else lambda text, state: text
    lines = _one(found[0], width, paint) if len(found) == 1 else _table(found, width, paint)
    return "\n".join(lines)


def overview(found: Sequence[RunStatus], width: int | None = None, colour: bool = False) -> str:
    """All that stands in a folder; of a sweep one line."""
    together: dict[str, list[RunStatus]] = {}
    for one in found:
        if one.sweep is not None:
            together.setdefault(Path(one.sweep).name, []).append(one)
    alone = [one for one in found if one.sweep is None]
    lines = [as_text(alone, width, colour)] if alone or not together else []
    told = (f"{summary(name, group)}: see launch.py status {name}" for name, group in together.items())
    return "\n".join([*lines, *told])


Paint = Callable[[str, str], str]


def _painted(text: str, state: str) -> str:
    return f"\033[1;{_COLOURS[state]}m{text}\033[0m"


# --- many -----------------------------------------------------------------------------------------------


def _table(found: Sequence[RunStatus], width: int | None, paint: Paint) -> Iterator[str]:
    head = ["run", "state", "step", "loss", "tokens/s", "done in", "goodput", "GPU-hours", "why"]
    rows = [head, *(_row(one) for one in found)]
    sizes = [max(len(row[column]) for row in rows) for column in range(len(head) - 1)]
    for row, one in zip(rows, [None, *found], strict=True):
        cells = [
            cell.ljust(size) if column < 2 else cell.rjust(size)
            for column, (cell, size) in enumerate(zip(row[:-1], sizes, strict=True))
        ]
        if one is not None:
            cells[1] = paint(cells[1], one.state)
        yield from _hung("  ".join([*cells, ""]), row[-1], sum(sizes) + 2 * len(sizes), width)
    for one in found:
        if in_trouble(one):
            yield f"{one.name}: {one.do}"


def _hung(begin: str, text: str, indent: int, width: int | None) -> list[str]:
    """`text` behind `begin`, which takes `indent` columns; where there is little room, below it. Nothing is cut."""
    if width is None or indent + len(text) <= width:
        return [f"{begin}{text}".rstrip()]
    below = width - indent < _NARROW
    indent = 4 if below else indent
    first, *rest = [begin.rstrip()] * below + textwrap.wrap(text, max(_NARROW, width - indent), break_on_hyphens=False)
    return [first if below else f"{begin}{first}", *(f"{'':{indent}}{line}" for line in rest)]


def in_trouble(one: RunStatus) -> bool:
    """It does not go on by itself, and its user has not asked for that."""
    return one.state == "interrupted" or (one.state == "ended" and not one.why.startswith(_WANTED))


def _row(one: RunStatus) -> list[str]:
    return [
        one.name,
        one.state,
        f"{one.step:,}" + (f" of {one.total_steps:,}" if one.total_steps else ""),
        "" if one.loss is None else f"{one.loss:.4f}",
        f"{one.tokens_per_second:,.0f}" if one.tokens_per_second and one.state == "running" else "",
        "" if one.ends is None else duration(one.ends - time.time()) + ("" if one.waits_known else " +"),
        "" if one.goodput is None else f"{one.goodput:.0%}",
        f"{one.gpu_hours:,.1f}",
        one.why,
    ]


# --- one ------------------------------------------------------------------------------------------------


def _one(one: RunStatus, width: int | None, paint: Paint) -> Iterator[str]:
    yield f"{one.name}: {paint(one.state, one.state)}{f' ({one.why})' if one.why else ''}"
    facts = {
        "to do": one.do,
        "progress": _progress(one),
        "speed": _speed(one),
        "done": _end(one),
        "cost": _cost(one),
        "next": _next(one),
        "expiry": one.expires,
        "curves": _tunnel(one),
        "model": _model(one),
    }
    yield from (f"  {name:<9} {text}" for name, text in facts.items() if text)
    yield from _attempts(one, width)
    yield from (f"  {note}" for note in one.notes)


def _progress(one: RunStatus) -> str:
    share = f" of {one.total_steps:,} ({one.step / one.total_steps:.0%})" if one.total_steps else ""
    loss = "" if one.loss is None else f", loss {one.loss:.4f}"
    saved = f", saved up to step {one.committed_step:,}" if one.committed_step else ""
    return f"step {one.step:,}{share}{loss}{saved}"


def _speed(one: RunStatus) -> str:
    if one.state != "running" or one.seconds_per_step is None:
        return ""
    parts = [f"{one.seconds_per_step:.3g} s a step"]
    parts += [f"{one.tokens_per_second:,.0f} tokens/s"] if one.tokens_per_second else []
    parts += [f"MFU {one.mfu:.1%}"] if one.mfu else []
    parts += [f"{one.memory_bytes / 1e9:.1f} GB at most"] if one.memory_bytes else []
    return ", ".join(parts)


def _end(one: RunStatus) -> str:
    if one.ends is None:
        return ""
    more = f", with {one.jobs_to_come} more job{'s' * (one.jobs_to_come != 1)}" if one.jobs_to_come else ""
    waits = "" if one.waits_known else " and their waits in the queue on top"
    return f"in about {duration(one.ends - time.time())}, {clock(one.ends)}{more}{waits}"


def _cost(one: RunStatus) -> str:
    whole = f", about {one.gpu_hours_expected:,.1f} in all" if one.gpu_hours_expected else ""
    good = "" if one.goodput is None else f"; goodput {one.goodput:.1%} (of it in steps that count)"
    return f"{one.gpu_hours:,.2f} GPU-hours so far{whole}{good}" if one.gpu_hours else ""


def _next(one: RunStatus) -> str:
    waiting = [job for job, text in one.jobs.items() if text.startswith("pending")]
    if not waiting or one.state == "waiting" and one.next_start is None:
        return ""
    if one.next_start is None:
        return f"job {waiting[0]} goes on after this one"
    return f"Slurm expects to start job {waiting[0]} {clock(one.next_start)}"


def _tunnel(one: RunStatus) -> str:
    """How a browser elsewhere sees the curves: a port of one's own, since others use this host as well."""
    folder = f"{one.folder}/tensorboard"
    if not os.path.isdir(folder):
        return ""
    port, me = _PORT + os.getuid() % 1000, pwd.getpwuid(os.getuid()).pw_name
    there = f"ssh -L {port}:localhost:{port} {me}@{os.uname().nodename}"
    return f"tensorboard --logdir {os.path.relpath(folder)} --port {port}; from your desk: {there}"


def _model(one: RunStatus) -> str:
    folder = f"{one.folder}/export"
    return os.path.relpath(folder) if one.state == "done" and os.path.isdir(folder) else ""


def _why(record: Mapping[str, Any]) -> str:
    """Of a failure what failed; else the cause in words, and what the reason adds to it."""
    cause, reason = str(record["cause"]), str(record["reason"] or "")
    if cause in FAILURES and reason:
        return reason
    return CAUSES.get(cause, cause) + (f" ({reason})" if reason and reason not in (*_NOTHING_NEW, cause) else "")


def _attempts(one: RunStatus, width: int | None) -> Iterator[str]:
    for record in one.attempts:
        steps = f"steps {record['first_step']:>6,} to {record['committed_step']:<6,}"
        when = time.strftime("%m-%d %H:%M", time.localtime(record["start"]))
        took = duration(record["end"] - record["start"])
        begin = f"  attempt {record['attempt']:>3}  {when}  {took:>12}  {steps}  {record['cause']:<12}  "
        yield from _hung(begin, _why(record), len(begin), width)
    if one.running_since is not None:
        number = one.attempts[-1]["attempt"] + 1 if one.attempts else 1
        when = time.strftime("%m-%d %H:%M", time.localtime(one.running_since))
        yield f"  attempt {number:>3}  {when}  {duration(time.time() - one.running_since):>12}  runs"
