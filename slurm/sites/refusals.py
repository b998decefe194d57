"""Why a site refuses a job: from Slurm's words to the flag of launch.py that caused them, and what to change."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from settings import nearest
from slurm.config import JobConfig

# Pattern in the words of Slurm or of a site's job_submit plugin; fields of the job that bring them about, the likeliest
# first (`sbatch.KEY`: of its sbatch table); what to do. The first row that is found counts, so a row that names a thing
# stands before one that only hints at it. Words of 22.05 to 26.05: slurm_errno.c, and the pending reasons that sbatch
# prints above "Job violates accounting/QOS policy".
# fmt: off
TABLE = (
    (r"MaxSubmit|GrpSubmit", ("continue_by",),
     "your places in the queue are used up: scancel a job; a chained run takes two places, --continue-by requeue one"),
    (r"job array", ("continue_by",), "this site takes no such array: take --continue-by chain"),
    (r"Billing|Minutes|GrpWall|usage threshold", ("account",), "the budget is used up, or too small for this job"),
    (r"MaxWall|TimeLimit\b", ("walltime",), "take less: the run goes on by itself through time limits"),
    (r"(Grp|Max|Min)GRES", ("gpus_per_node", "nodes"), "take fewer GPUs in all"),
    (r"(Grp|Max|Min)Cpu", ("cpus_per_gpu", "gpus_per_node"), "take fewer cores in all"),
    (r"invalid --mem ", ("mem",), "write 16000M, 120G, or 0 for all of a node"),
    (r"(Grp|Max|Min)Mem|memory|--mem\b", ("mem",), "take less, or leave it out where the site says so"),
    (r"(Grp|Max|Min)Node|NodeLimit\b", ("nodes",), "take another number of nodes"),
    (r"accounting/QOS policy", ("qos", "account"), "a limit of yours is exceeded: see `sacctmgr show qos`"),
    (r"invalid account|account/partition|--account\b", ("account", "partition"),
     "see `sacctmgr show associations user=$USER`"),
    (r"invalid qos|qos .*not (allowed|permitted)|--qos\b", ("qos",), "see `sacctmgr show associations user=$USER`"),
    (r"time-min", ("time_min", "sbatch.time-min"), "it must not exceed --walltime, nor the partition's limit"),
    (r"time limit|--time\b", ("walltime",), "give --walltime HH:MM:SS within the partition's limit"),
    (r"feature|--constraint\b", ("constraint",), "see `sinfo --format=%P,%f`"),
    (r"reservation", ("reservation",), "see `scontrol show reservation`"),
    (r"node name|nodes not in this partition", ("nodelist", "exclude"), "see `sinfo --Node`"),
    (r"node count|number of nodes", ("nodelist", "nodes"), "--nodes must fit the nodes that are named"),
    (r"partition|permission denied", ("partition",), "see `sinfo --summarize`"),
    (r"license", ("sbatch.licenses",), "see `scontrol show licenses`"),
    (r"wckey", ("sbatch.wckey",), "see `sacctmgr show wckeys user=$USER`"),
    (r"gres|generic resource|--gpus", ("sbatch.gres", "gpus_per_node"),
     "this site asks for GPUs in another way than --gpus-per-node=N: see its documentation"),
    (r"processors requested|cpu count|task count", ("cpus_per_gpu", "gpus_per_node"), "take fewer cores or GPUs"),
)
# fmt: on

NO_PLACES = re.compile(TABLE[0][0])

# Slurm's words for what no node can give, but also for what none can give as long as some are down or drained.
NO_SUCH_NODES = re.compile(r"(node|partition) configuration (is )?not available|nodes are busy|node not available")
# Not the user's mistake: the same words may work later.
NOT_NOW = re.compile(
    r"submissions disabled|MaxJobCount|queue full|temporarily|internal error|I/O error|authentication|munge",
    re.IGNORECASE,
)
# What asks for something of a node, when no number tells which of it is too much.
_SHAPE = ("constraint", "nodelist", "exclude", "mem", "cpus_per_gpu", "sbatch.gres", "gpus_per_node", "nodes")


def explain(words: str, job: JobConfig, valid: Callable[[str], Iterable[str]]) -> str:
    """One line: the flags with their values, Slurm's own words, what to do. `valid`: what the site has for a field."""
    causes, advice = _find(words, job)
    if not causes:
        return f"Slurm refuses the job: {words}: --dry-run shows what is sent"
    given = [cause for cause in causes if value_of(cause, job) is not None] or [causes[0]]
    flags = " ".join(flag(cause, job) for cause in given)
    return f"{flags}: Slurm says: {words}: {_hint(value_of(given[0], job), valid(given[0])) or advice}"


def _find(words: str, job: JobConfig) -> tuple[tuple[str, ...], str]:
    """Causes and advice; an option of the user's own sbatch table that the words name is the surest."""
    named = tuple(f"sbatch.{key}" for key in job.sbatch if re.search(rf"--{re.escape(key)}(?![\w-])", words))
    rows = (row[1:] for row in TABLE if re.search(row[0], words, re.IGNORECASE))
    if NO_SUCH_NODES.search(words):
        return _SHAPE, "no node has all of it: ask for less"
    return (named, "see `man sbatch`") if named else next(rows, ((), ""))


def _hint(value: object | None, names: Iterable[str]) -> str:
    known = sorted(names)
    if value in known:
        return ""  # there is one of this name: Slurm means something else
    near = nearest(str(value), known)
    return f"did you mean {near}?" if near else f"there are: {', '.join(known)}" if known else ""


def value_of(cause: str, job: JobConfig) -> object | None:
    _, dot, key = cause.partition("sbatch.")
    return job.sbatch.get(key) if dot else getattr(job, cause, None)


def flag(cause: str, job: JobConfig) -> str:
    """A field and its value as a user writes them on the command line."""
    value = value_of(cause, job)
    if cause.startswith("sbatch."):
        return f"--sbatch {cause.removeprefix('sbatch.')}" + ("" if value is None or value is True else f"={value}")
    if cause == "cpus_per_gpu":
        return f"job.cpus_per_gpu={value}"
    name = {"gpus_per_node": "--gpus"}.get(cause, f"--{cause.replace('_', '-')}")
    return f"{name} is not given" if value is None else f"{name} {value}"
