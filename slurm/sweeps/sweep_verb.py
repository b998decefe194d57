"""What `launch.py sweep` does, and what it says of it."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from settings import to_plain
from slurm import control, describe, submission
from slurm.config import counted
from slurm.sweeps import sweep
from slurm.sweeps.sweep import Plan

SHOWN = 20
"""Runs that a dry run names."""


def start(plan: Plan) -> int:
    """Queue what is not done of a sweep, or train it here, one run after the other."""
    name, job = plan.sweep.name, plan.array.job
    if not plan.ready:
        print("\n".join([*left(plan), f"nothing is to be done: launch.py status {name}"]))
        return 0
    if not plan.array.cluster.live and job.cluster != "local":
        raise describe.not_here(plan.array)
    sweep.rehearse(plan)
    try:
        sweep.write(plan)
        submission.prepare_data(*plan.ready)
        print("\n".join([*left(plan), *account(plan)]), flush=True)
        job_id = None if job.cluster == "local" else sweep.send(plan)
    except BaseException:  # also Ctrl-C
        sweep.discard(plan)
        raise
    if job_id is None:
        return run_here(plan)
    print(f"job {job_id} is in the queue\n\n  launch.py status {name}\n  launch.py stop {name}")
    return 0


def show(plan: Plan, as_json: bool) -> int:
    """A dry run, as `show`."""
    if as_json:
        print(json.dumps(_as_json(plan), indent=2))
        return 0
    print("\n".join([*left(plan), *account(plan), *runs_of(plan)]), file=sys.stderr, flush=True)
    sys.stdout.write(plan.array.script if plan.ready else "")
    return 0


def run_here(plan: Plan) -> int:
    """Without a scheduler: one after the other. Returns the first exit code that is not 0."""
    codes = []
    for number, one in enumerate(plan.ready, 1):
        print(f"== {one.run.name}: {number} of {len(plan.ready)}", flush=True)
        codes.append(control.run_here(one.run, allocation=False))
        if (one.run.cancelled or {}).get("cause") == "stop":  # Ctrl-C means all of them
            break
    return next((code for code in codes if code), 0)


def account(plan: Plan) -> list[str]:
    """What a call of `sweep` does, in lines as those of one run."""
    if not plan.ready:
        return []
    array, first = plan.array, plan.ready[0]
    where = f"{array.cluster.profile.name} ({array.cluster.found_by})"
    at_once = f", {plan.parallel} at a time" if plan.parallel else ""
    runs = counted(len(plan.ready), "run")
    lines = [f"{plan.sweep.name}: {runs} of {array.job.layout} on {where}{at_once}", *describe.noted(first)]
    if array.job.cluster != "local":
        lines += [f"each {describe.continuation(first)}"]
    return lines


def left(plan: Plan) -> list[str]:
    """What it leaves as it is."""
    why: dict[str, list[str]] = {}
    for name, cause in plan.left.items():
        why.setdefault(cause, []).append(name)
    return [f"left, since it {cause}: {', '.join(names)}" for cause, names in why.items()]


def runs_of(plan: Plan) -> list[str]:
    """Its runs, each with its values, and what each of them may cost."""
    values = {entry["run"]: entry["values"] for entry in plan.after}
    shown = [(one, values[one.run.name]) for one in plan.ready[:SHOWN]]
    lines = [f"  {one.task:>4}  {one.run.name}  {_words(its)}" for one, its in shown]
    more = len(plan.ready) - len(shown)
    each = describe.cost(plan.ready[0]) if plan.ready else []
    return [*lines, *([f"        and {more} more"] if more else []), *(f"each: {line.strip()}" for line in each)]


def _words(values: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in values.items())


def _as_json(plan: Plan) -> dict[str, object]:
    values = {entry["run"]: entry["values"] for entry in plan.after}
    return {
        "sweep": plan.sweep.name,
        "folder": str(plan.sweep.path),
        "job": to_plain(plan.array.job),
        "layout": plan.array.job.layout,
        "runs": [{"run": one.run.name, "task": one.task, "values": values[one.run.name]} for one in plan.ready],
        "left": plan.left,
        "script": plan.array.script if plan.ready else "",
    }
