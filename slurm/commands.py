"""Slurm's own commands: argv lists with a time limit and a checked result, and their texts read into facts."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from settings import ConfigError
from slurm.environment import CONF, without_job, without_path
from slurm.errors import CommandFailed
from slurm.walltime import Walltime

TIMEOUT = 15.0  # seconds; a controller that is down answers after 4 to 8 s (measured)


def run(argv: Sequence[str], timeout: float = TIMEOUT, environ: Mapping[str, str] = os.environ) -> str:
    """Standard output of a Slurm command. Raises CommandFailed with Slurm's own words."""
    env = without_job(environ)
    try:
        result = subprocess.run(
            argv, capture_output=True, text=True, timeout=timeout, env=env, stdin=subprocess.DEVNULL
        )
    except FileNotFoundError:
        raise CommandFailed(f"{argv[0]}: there is no such command here: is this a Slurm login node?") from None
    except subprocess.TimeoutExpired:
        raise CommandFailed(f"{argv[0]}: no answer within {timeout:.0f} s: is the Slurm controller up?") from None
    if result.returncode:
        words = " ".join((result.stderr or result.stdout).split()) or "no message"
        raise CommandFailed(f"{' '.join(argv[:3])}: exit {result.returncode}: {words}")
    return result.stdout


@dataclass(frozen=True)
class JobFacts:
    """What Slurm says of a job: the oracle that tells why a signal came."""

    job_id: str
    name: str
    state: str
    reason: str
    restarts: int
    end_time: float | None
    """Unix seconds at which Slurm ends the allocation."""
    preempt_time: float | None
    """Unix seconds at which a preemption of this run of the job began."""
    nodes: int = 1
    cpus: int = 1
    """Of all its nodes."""
    gpus_per_node: int | None = None
    """As the job asked for them; None: it asked for none."""


def parse_job(text: str) -> JobFacts:
    """One line of `scontrol --oneliner show job`."""
    facts = dict(re.findall(r"(\w+)=(\S*)", text))
    gpus = re.search(r"TresPerNode=\S*gpu(?::[^:,\s]+)?:(\d+)", text)
    return JobFacts(
        job_id=facts["JobId"],
        name=facts.get("JobName", ""),
        state=facts.get("JobState", "UNKNOWN"),
        reason=facts.get("Reason", "None"),
        restarts=int(facts.get("Restarts", 0)),
        end_time=_unix(facts.get("EndTime", "")),
        preempt_time=_unix(facts.get("PreemptTime", "")),
        nodes=int(facts.get("NumNodes", "1").partition("-")[0]),
        cpus=int(facts.get("NumCPUs", "1").partition("-")[0]),
        gpus_per_node=int(gpus[1]) if gpus else None,
    )


def _unix(text: str) -> float | None:
    """Slurm prints local time without a zone, or None, Unknown, N/A."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None


def show_job(job_id: str) -> JobFacts | None:
    """Facts of a job; None when Slurm has forgotten it (MinJobAge)."""
    try:
        return parse_job(run(["scontrol", "--oneliner", "show", "job", job_id]))
    except CommandFailed as error:
        if "Invalid job id" in str(error):
            return None
        raise


def accounted_job(job_id: str) -> JobFacts | None:
    """What the accounting keeps of a job that Slurm itself has forgotten; None: no accounting, or no such job."""
    try:
        text = run(
            ["sacct", "--allocations", "--noheader", "--parsable2", f"--jobs={job_id}", "--format=State,JobName"]
        )
    except CommandFailed:
        return None
    state, _, name = text.strip().partition("|")
    return JobFacts(job_id, name, state.split()[0], "None", 0, None, None) if state else None


def submit(script: Path, after: str, name: str) -> str:
    """Queue the successor of job `after`; its supervisor hears whom it follows. Returns its job id."""
    flags = ["--parsable", f"--dependency=afterany:{after}", f"--job-name={name}"]
    environ = without_path(os.environ, script.parent / "code")  # the script adds it: hop by hop it would grow
    return run(["sbatch", *flags, str(script), "--after", after], environ=environ).strip().split(";")[0]


def cancel(job_id: str) -> None:
    """Cancel a job; one that has ended already is no error."""
    try:
        run(["scancel", job_id])
    except CommandFailed as error:
        if "Invalid job id" not in str(error) and "already completed" not in str(error):
            raise


def requeue(job_id: str) -> None:
    """The same job again. It ends all steps at once, so it must be the last act of a job."""
    run(["scontrol", "requeue", job_id])


def rename(job_id: str, name: str) -> None:
    run(["scontrol", "update", f"JobId={job_id}", f"JobName={name}"])


def cluster_name() -> str | None:
    """ClusterName of this machine's Slurm; None: it has none. Raises ConfigError when there is one that fails."""
    if CONF in os.environ and not Path(os.environ[CONF]).exists():
        return None  # scontrol would wait a minute for the file
    try:
        text = run(["scontrol", "show", "config"])
    except CommandFailed as error:
        if "no such command" in str(error) or "configuration source" in str(error):
            return None
        # A Slurm that is slow or down is no reason to train on the login node.
        raise ConfigError(f"{error}; to train here without it: --cluster local") from None
    match = re.search(r"^ClusterName\s*=\s*(\S+)", text, re.MULTILINE)
    return match[1] if match else None


@dataclass(frozen=True)
class Partition:
    """A partition as sinfo shows it; where its nodes differ, the largest."""

    name: str
    default: bool
    nodes: int
    gpus_per_node: int
    max_walltime: Walltime | None


def partitions() -> list[Partition]:
    """Partitions of the cluster, from one sinfo. Raises CommandFailed."""
    return parse_partitions(run(["sinfo", "--noheader", "--format=%P|%l|%D|%G"]))


def parse_partitions(text: str) -> list[Partition]:
    found: dict[str, Partition] = {}
    for line in filter(None, text.splitlines()):
        name, limit, nodes, gres = line.strip().split("|")
        gpus = sum(int(count) for count in re.findall(r"\bgpu(?::[^:,()]+)?:(\d+)(?=[(,\s]|$)", gres))
        old = found.get(name.rstrip("*"))
        found[name.rstrip("*")] = Partition(
            name=name.rstrip("*"),
            default=name.endswith("*"),
            nodes=int(nodes) + (old.nodes if old else 0),
            gpus_per_node=max(gpus, old.gpus_per_node if old else 0),
            max_walltime=_limit(limit),
        )
    return list(found.values())


def _limit(text: str) -> Walltime | None:
    """sinfo's %l: `1-00:00:00`, also `30:00` (minutes and seconds), `infinite`."""
    try:
        return Walltime.parse(f"00:{text}" if re.fullmatch(r"\d+:\d\d", text) else text)
    except ValueError:
        return None


@dataclass(frozen=True)
class QueueLine:
    job_id: str
    state: str
    reason: str
    left: str


def queue(job_ids: Sequence[str]) -> dict[str, QueueLine]:
    """Jobs of these ids that wait or run, from one squeue."""
    if not job_ids:
        return {}
    try:
        text = run(["squeue", "--noheader", "--format=%i|%T|%r|%L", f"--jobs={','.join(job_ids)}"])
    except CommandFailed as error:
        if "Invalid job id" in str(error):  # squeue's answer when it knows none of them
            return {}
        raise
    lines = (QueueLine(*line.strip().split("|")) for line in text.splitlines() if line.strip())
    return {line.job_id: line for line in lines}
