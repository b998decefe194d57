"""Checks of Slurm on the login node: whether it answers, and whether it takes the job."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import date

from settings import ConfigError
from slurm import commands, environment, nodelist, submission
from slurm.doctor.case import Case, refused
from slurm.doctor.finding import Finding, error, ok, warning
from slurm.environment import CONF
from slurm.rundir import RunDir
from slurm.sites import cluster as clusters
from slurm.sites import site_rules
from slurm.sites.fit import misfits

OLDEST, NEWEST = (20, 11), (26, 5)
"""Versions of Slurm whose traps are known."""
SKEW, LONG_SKEW = 30.0, 240.0
"""Seconds; munge refuses a credential that is 300 s off."""
_AWAY = re.compile(r"\*|\b(DOWN|DRAIN\w*|FAIL\w*|MAINT|NOT_RESPONDING|REBOOT\w*)\b")


def slurm(case: Case) -> Iterator[Finding]:
    cluster, site = case.cluster, case.cluster.site
    if site is None:
        what = f"no Slurm of {cluster.profile.name} answers here ({cluster.found_by})"
        why, mend = "nothing can be queued from here", "log in to a login node of the cluster; see `scontrol ping`"
        wanted = cluster.profile.name != "local" or CONF in case.environ
        yield error("slurm", what, why, mend) if wanted else ok("slurm", f"{what}: a run trains on this machine")
        return
    said = f"{'.'.join(f'{part:02d}' for part in site.version)} of the cluster {site.name} answers"
    if OLDEST <= site.version[:2] <= NEWEST:
        yield ok("slurm", f"{said} ({cluster.found_by}), profile {cluster.profile.name}")
    else:
        known = " to ".join(".".join(f"{part:02d}" for part in version) for version in (OLDEST, NEWEST))
        yield warning("slurm", said, f"its flags are known from {known} only", "look at the script: --dry-run")


def clock(case: Case) -> Iterator[Finding]:
    site = commands.site()
    if site is None or site.clock is None:
        return
    ahead = site.clock - case.now()  # in whole seconds
    if abs(ahead) <= SKEW:
        yield ok("clock", "this host and the controller agree")
        return
    told = error if abs(ahead) > LONG_SKEW else warning
    why = "deadlines are missed, and above 300 s munge refuses every command"
    yield told(
        "clock", f"the controller's clock is {ahead:+.0f} s from this host's", why, "tell the site; `chronyc tracking`"
    )


def overrides(case: Case) -> Iterator[Finding]:
    found = environment.overrides(case.environ)
    for name, value in found.items():
        yield warning(
            "environment",
            f"{name}={value} is set in this shell",
            "a plain sbatch of submission.sh obeys it instead of the script; launch.py drops it",
            f"unset {name}, and say it by launch.py's own flag",
        )
    if not found:
        yield ok("environment", "no SBATCH_ variable overrides a script")


def profile(case: Case) -> Iterator[Finding]:
    """Its age, the account that it wants, the nodes that it gives whole."""
    notes = site_rules.notes(case.job, case.cluster.profile, date.fromtimestamp(case.now()))
    for note in notes:
        what, _, mend = note.rpartition(": ")
        yield warning("profile", what, "what the site wants of a job may not be what it gets", mend)
    if not notes:
        known = case.cluster.profile.name != "generic"
        fitting = "fits the job" if known else "is nobody's: draft your site's with --write-profile NAME"
        yield ok("profile", f"{case.cluster.reference} {fitting}")


def rules(case: Case) -> Iterator[Finding]:
    """What the site, or its version of Slurm, never takes."""
    site_rules.check(case.job, case.cluster.profile, case.cluster.version)
    return iter(())


def partition(case: Case) -> Iterator[Finding]:
    """The job against the limits of its partitions: of several Slurm takes one that fits."""
    wrong = [list(misfits(case.job, choice)) for choice in case.partitions]
    for line in wrong[0] if all(wrong) else ():
        yield refused("partition", ConfigError(line))
    for choice in case.partitions:
        if choice.state == "down":
            why = "jobs wait there until the site opens it"
            yield warning("partition", f"partition {choice.name} is down", why, "take another by --partition")
    if not all(wrong):
        limit = case.partitions[0].max_walltime
        names = ",".join(choice.name for choice in case.partitions)
        yield ok("partition", f"{names} takes {case.job.layout}{f', at most {limit}' if limit else ''}")


def access(case: Case) -> Iterator[Finding]:
    """Account and QOS of the partition, and those that the accounting knows of this user."""
    job, site = case.job, case.cluster.site
    if site is None:
        return
    clusters.check_access(job, case.partitions, site)
    clusters.check_qos(job, site)
    accounts, qoses = commands.associations() if site.accounts else (set(), set())
    for flag, value, known in (("--account", job.account, accounts), ("--qos", job.qos, qoses)):
        if value and known and value not in known:
            mend = f"take {flag} {' or '.join(sorted(known))}"
            yield error("access", f"{flag} {value} is none of yours", "Slurm refuses the job", mend)
    told = [f"{name} {value}" for name, value in (("account", job.account), ("QOS", job.qos)) if value]
    yield ok("access", f"{' and '.join(told) or 'the default account and QOS'} may use the partition")


def nodes(case: Case) -> Iterator[Finding]:
    """Enough of the partition's nodes are up."""
    names = {choice.name for choice in case.partitions}
    mine = [node for node in commands.nodes() if names & {*node.get("Partitions", "").split(",")}]
    away = [node for node in mine if _AWAY.search(node.get("State", ""))]
    named = {*nodelist.expand(case.job.nodelist)} if case.job.nodelist else set()
    told = "; ".join(f"{node['NodeName']} is {node['State'].lower()}{_reason(node)}" for node in away[:5])
    up = len(mine) - len(away)
    if up < case.job.nodes or named & {node["NodeName"] for node in away}:
        where = ",".join(sorted(names))
        what = f"{up} of {len(mine)} nodes of {where} can take jobs, {case.job.nodes} are asked for: {told}"
        yield warning(
            "nodes", what, "the job waits until they are back", "take fewer by --nodes, or another --partition"
        )
    else:
        yield ok("nodes", f"{up} of {len(mine)} can take jobs{f': {told}' if told else ''}")


def _reason(node: dict[str, str]) -> str:
    words = node.get("Reason", "").partition(" [")[0]  # who has said so, and when, comes after it
    return f" ({words})" if words else ""


def requeue(case: Case) -> Iterator[Finding]:
    site, by = case.cluster.site, case.job.continue_by
    if site is None:
        return
    if site.requeues:
        yield ok("requeue", "jobs may be requeued (JobRequeue=1); --prove-requeue with --nodes proves it")
        return
    told, mend = (
        (error, "take --continue-by chain") if by == "requeue" else (warning, "keep --continue-by chain or array")
    )
    why = "a site that requeues no job of itself often forbids it: a node's failure ends such a job for good"
    yield told("requeue", "this Slurm requeues no job that does not ask for it (JobRequeue=0)", why, mend)


def rehearsal(case: Case) -> Iterator[Finding]:
    """`sbatch --test-only` of the very script."""
    job = clusters.with_continuation(case.job, case.cluster)
    ready = submission.Submission(job, case.cluster, RunDir((case.runs / job.name).resolve()), None)
    said = submission.rehearse(ready)
    yield ok("rehearsal", f"sbatch --test-only takes the script{f': {said[-1]}' if said else ''}")


SITE = [slurm, clock, overrides]
JOB = [profile, rules, partition, access, nodes, requeue]
LAST = [rehearsal]
"""Where nothing else speaks against the job: Slurm's own words come after ours."""
