"""Slurm's codes in words: why a job waits, how one has ended, and what to do about it. Pure.

Codes of Slurm's manual of job reason codes, 20.11 to 26.05. Limits have one code for each of hundreds of combinations:
these are taken apart.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Reason(NamedTuple):
    meaning: str
    do: str = ""
    """What its user can do; empty: nothing, or nothing is needed. {run} and {job} are filled in."""


_ASK = "ask the site's support, with scontrol show job {job}"
_AGAIN = "launch.py stop {run}, then launch.py resume {run}"
_WAIT = "it starts by itself when"
_BUDGET = "more hours are the account's owner's to ask for; another account: " + _AGAIN + " -A ACCOUNT"

WAITING = {
    "None": Reason("Slurm has not looked at it yet"),
    "Priority": Reason(
        "jobs of higher priority come first",
        "a shorter --walltime, or --time-min, lets it start in a gap; squeue --start says when",
    ),
    "Resources": Reason(
        "it is next, and waits for nodes to become free",
        "fewer --nodes or a shorter --walltime would start sooner",
    ),
    "Dependency": Reason("the job before it has not ended yet"),
    "DependencyNeverSatisfied": Reason(
        "what it waits for can no longer happen", "launch.py stop {run}, then launch.py resume {run}"
    ),
    "BeginTime": Reason("Slurm keeps it back until a fixed time, as after a requeue (2 minutes)"),
    "JobArrayTaskLimit": Reason("another job of its array runs: one goes at a time"),
    "JobHeldUser": Reason("you have held it", "scontrol release {job}"),
    "JobHeldAdmin": Reason("an administrator has held it", _ASK),
    "JobHoldMaxRequeue": Reason("it was requeued too often, and is held", "scontrol release {job}"),
    "job requeued in held state": Reason("it was requeued, and is held", "scontrol release {job}"),
    "launch failed requeued held": Reason(
        "a node could not start it, so it was requeued, and is held", "scontrol release {job}; " + _ASK
    ),
    "JobLaunchFailure": Reason("a node could not start it", "launch.py resume {run}; when it comes again: " + _ASK),
    "ReqNodeNotAvail": Reason(
        "nodes that it needs are down, drained or reserved, often for a maintenance that begins before its end",
        "a --walltime that ends before the maintenance (scontrol show reservation): " + _AGAIN + " -t TIME",
    ),
    "Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions": Reason(
        "the nodes that it needs are down, drained or taken by partitions that go first",
        "sinfo -R says why; it waits for them, or take another --partition",
    ),
    "Reservation": Reason("its reservation has not begun yet, or is full", "scontrol show reservation"),
    "ReservationDeleted": Reason("its reservation is gone", _AGAIN + " job.reservation=null"),
    "PartitionTimeLimit": Reason(
        "it asks for more time than its partition gives: it would wait for ever",
        _AGAIN + " -t TIME (sinfo -o '%P %l' shows the limits); the run outlasts it",
    ),
    "PartitionNodeLimit": Reason(
        "its number of nodes is outside its partition's limits: it would wait for ever",
        _AGAIN + " with other --nodes (scontrol show partition)",
    ),
    "PartitionDown": Reason("its partition starts no jobs now", "wait, or another --partition"),
    "PartitionInactive": Reason("its partition is switched off", "another --partition"),
    "PartitionConfig": Reason("its partition does not admit it as it is", "another --partition, --account or --qos"),
    "AccountNotAllowed": Reason("its partition does not admit this account", "another --partition or --account"),
    "AccountingPolicy": Reason("a limit of your account or of the QOS", "sacctmgr show assoc user=$USER"),
    "AssociationJobLimit": Reason("your account has as many jobs as it may", _WAIT + " some of them end"),
    "AssociationResourceLimit": Reason("your account uses as much as it may", _WAIT + " some of its jobs end"),
    "AssociationTimeLimit": Reason("your account's time is used up", _BUDGET),
    "QOSJobLimit": Reason("the QOS has as many jobs as it may", _WAIT + " some of them end; or another --qos"),
    "QOSResourceLimit": Reason("the QOS uses as much as it may", _WAIT + " some of its jobs end; or another --qos"),
    "QOSTimeLimit": Reason("the QOS's time is used up", "another --qos"),
    "QOSNotAllowed": Reason("the partition or your account does not admit this QOS", "another --qos"),
    "QOSUsageThreshold": Reason("you have used less or more than the QOS asks for", "another --qos"),
    "InvalidAccount": Reason("the account is not valid", _AGAIN + " -A ACCOUNT"),
    "InvalidQOS": Reason("the QOS is not valid", _AGAIN + " -q QOS"),
    "BadConstraints": Reason(
        "no node can ever give what it asks for", _AGAIN + " with another --constraint or another layout"
    ),
    "Licenses": Reason("it waits for a licence", _WAIT + " one is given back"),
    "Cleaning": Reason("what is left of its last start is being removed"),
    "Prolog": Reason("the site prepares its nodes"),
    "SchedDefer": Reason("it asks to start at once, which this site does not do"),
    "InactiveLimit": Reason("it was inactive for too long"),
    "FrontEndDown": Reason("no front end is up", _ASK),
    "SystemFailure": Reason("Slurm or a node has failed", _ASK),
    "NodeDown": Reason("a node that it needs is down", _WAIT + " the node is back; sinfo -R says why it is away"),
    "DeadLine": Reason("it could not end before its deadline any more"),
    "FedJobLock": Reason("another cluster of the federation may start it"),
    "WaitingForScheduling": Reason("Slurm has not looked at it yet"),
    "BurstBufferOperation": Reason("a burst buffer failed", _ASK),
    "BurstBufferResources": Reason("it waits for room in the burst buffer"),
    "BurstBufferStageIn": Reason("its files are being brought to the burst buffer"),
    "PowerNotAvail": Reason("the site has no power for it now", _WAIT + " there is"),
    "PowerReserved": Reason("the site keeps its power for others now", _WAIT + " there is"),
}

ENDED = {
    "BOOT_FAIL": Reason("a node did not start", "launch.py resume {run}"),
    "CANCELLED": Reason("it was cancelled", "launch.py resume {run}, if that was not meant"),
    "COMPLETED": Reason("its supervisor left in order", "launch.py logs {run}"),
    "DEADLINE": Reason("it could not end before its --deadline", "launch.py resume {run}"),
    "FAILED": Reason("its supervisor left with an error, or never started", "its log: {log}"),
    "NODE_FAIL": Reason("a node was lost", "launch.py resume {run}"),
    "OUT_OF_MEMORY": Reason("the node's memory, or its share of it, was used up", "launch.py resume {run} --mem MORE"),
    "PREEMPTED": Reason("Slurm took its nodes for other jobs, and put it into no queue", "launch.py resume {run}"),
    "REVOKED": Reason("another cluster of the federation runs it"),
    "TIMEOUT": Reason("its time limit was reached before it could save and hand over", "launch.py resume {run}"),
}

CAUSES = {
    "done": "done",
    "timeout": "the time limit",
    "preemption": "Slurm took the nodes for other jobs",
    "node_failure": "a node was lost",
    "requeued": "Slurm, or an administrator, requeued the job",
    "signal": "a signal asked the ranks to stop",
    "crash": "a rank failed",
    "oom": "no memory was left",
    "hang": "the ranks hung",
    "stop": "its user asked for it",
    "cancel": "its user cancelled the job (scancel)",
    "budget": "a limit of its user",
    "fenced": "another attempt owns the run",
    "config": "a mistake in the configuration",
}
"""Of an attempt's end."""

_LIMIT = re.compile(
    r"(?P<who>Assoc|QOS)?(?P<kind>Grp|Max|Min)(?P<submit>Submit)?"
    r"(?P<what>BB|Billing|CPU|Energy|GRES|Jobs?|License|Mem(?:ory)?|Node|Power|Unknown|Wall(?:Duration)?)"
    r"(?P<run>Run)?(?P<minutes>Minutes|Mins)?(?:Per(?P<per>Job|User|Account|Node|Limit))?(?:Limit|NotSatisfied)?",
    re.IGNORECASE,
)
_WHAT = {
    "bb": "burst buffer",
    "billing": "billing units",
    "cpu": "CPUs",
    "energy": "energy",
    "gres": "GPUs",
    "job": "jobs",
    "jobs": "jobs",
    "license": "licences",
    "mem": "memory",
    "memory": "memory",
    "node": "nodes",
    "power": "power",
    "unknown": "of a resource",
    "wall": "time",
    "wallduration": "time",
}


def waiting(code: str) -> Reason:
    """Of a job that waits; `code` as squeue says it, also with what it adds behind a comma."""
    told = code.replace("_", " ").strip("() ")
    name = code.partition(",")[0].strip("() ")
    known = WAITING.get(name) or WAITING.get(told)
    if known is None and told.startswith("Nodes required"):
        known = next(reason for key, reason in WAITING.items() if key.startswith("Nodes required"))
    added = told.partition(",")[2].strip() if known and "," in told and not told.startswith("Nodes") else ""
    if known is not None:
        return known._replace(meaning=f"{known.meaning} ({added})") if added else known
    return _limit(name) or Reason(f"Slurm's code is {told}", "scontrol show job {job}")


def ended(state: str, reason: str) -> Reason:
    """Of a job that has ended; `reason` as squeue says it."""
    known = ENDED.get(state, Reason(f"Slurm's state is {state}", "scontrol show job {job}"))
    say = WAITING.get(reason)
    cause = reason not in ("None", "NonZeroExitCode", "TimeLimit", "OutOfMemory", "NodeDown") and state == "FAILED"
    return known._replace(meaning=f"{known.meaning}: {say.meaning if say else reason}") if cause else known


def _limit(code: str) -> Reason | None:
    """Of a code such as AssocGrpGRESMinutes or QOSMaxNodePerUserLimit."""
    match = _LIMIT.fullmatch(code)
    if match is None:
        return None
    owner = "your account" if (match["who"] or "").lower() == "assoc" else "the QOS"
    what, kind, per = _WHAT[match["what"].lower()], match["kind"].lower(), (match["per"] or "").lower()
    other = "--account" if owner == "your account" else "--qos"
    if kind == "min":
        return Reason(f"it asks for less {what} than {owner} wants", f"ask for more, or take another {other}")
    if what == "jobs":
        whose = {"user": "you have", "account": "your account has"}.get(per, f"{owner} has")
        return Reason(f"{whose} as many jobs as {owner} allows", _WAIT + f" some of them end; or another {other}")
    if match["minutes"] and kind == "grp":
        if match["run"]:
            text = f"{what} x time limit of the running jobs of {owner} have reached what it may promise"
            return Reason(text, _WAIT + " some of them end; a shorter --walltime counts less")
        return Reason(f"the hours of {owner} ({what}) are used up", _BUDGET)
    if kind == "grp":
        text = f"the jobs of {owner}, all users together, take all {what} that it may have"
        return Reason(text, _WAIT + f" some of them end; with fewer --nodes sooner; or another {other}")
    if per in ("user", "account"):
        whose = "your jobs have" if per == "user" else "your account's jobs have"
        return Reason(f"{whose} all {what} that {owner} gives one {per}", _WAIT + " some of them end")
    less = "-t TIME; the run outlasts it" if what == "time" else "with a smaller layout (--nodes, --gpus, --mem)"
    text = (
        f"it asks for more {what} than {owner} gives one {'node' if per == 'node' else 'job'}: it would wait for ever"
    )
    return Reason(text, f"{_AGAIN} {less}, or another {other}")
