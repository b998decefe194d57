"""Slurm's own commands: argv lists with a time limit and a checked result, and their texts read into facts."""

from __future__ import annotations

import itertools
import os
import pwd
import re
import subprocess
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from slurm.causes.reasons import ENDED
from slurm.environment import CONF, without_job, without_path
from slurm.errors import CommandFailed, ControllerAway
from slurm.sites import partition
from slurm.sites import site as site_facts
from slurm.sites.partition import Partition
from slurm.sites.site import Site, unix
from slurm.walltime import Walltime

TIMEOUT = 15.0  # seconds; a controller that is down answers after 4 to 8 s (measured)
REHEARSAL_TIMEOUT = 60.0  # a busy site looks for nodes as long as its sbatch may take
BROADCAST_TIMEOUT = 1800.0  # seconds
PATIENCE = 20.0  # seconds in which a person's question to a controller that is away is asked again

# The connection failed: nothing has reached the controller. All others may have (a controller that was stopped while
# sbatch gave up by "Socket timed out" queued the job when it went on: measured).
_NOT_SENT = re.compile(r"\(connect failure\)|Can't find an address")
_AWAY = re.compile(
    r"Unable to contact slurm controller|Socket timed out|Zero Bytes were transmitted|Connection timed out"
    r"|Message (send|receive) failure|Communication (connection|shutdown) failure|Header lengths are longer"
    r"|delayed socket error|in standby mode|shutting down and closing|Rate limit exceeded"
    r"|Connection re(set|fused)|Broken pipe|No route to host|Network is unreachable|Transport endpoint",
    re.IGNORECASE,
)
_OPENING = re.compile(
    r"^(?:(?:sbatch|squeue|scontrol|scancel|sinfo|sacct|sacctmgr): )?(?:error: )?"
    r"(?:allocation failure: |Batch job submission failed: |slurm_\w+(?: error)?: )?"
)
_KILLED = (124, 137)  # what `timeout` and a shell return for a command that they, or somebody, ended


def run(
    argv: Sequence[str], timeout: float = TIMEOUT, environ: Mapping[str, str] = os.environ, patience: float = 0.0
) -> str:
    """Standard output of a Slurm command. Raises CommandFailed with Slurm's own words.

    `patience`: seconds in which a call that only reads is repeated while the controller is away.
    """
    end, pause = time.monotonic() + patience, 1.0
    while True:
        try:
            return execute(argv, timeout, environ).stdout
        except ControllerAway:
            if time.monotonic() + pause > end:
                raise
        time.sleep(pause)
        pause *= 2


def execute(
    argv: Sequence[str], timeout: float = TIMEOUT, environ: Mapping[str, str] = os.environ, text: str = ""
) -> subprocess.CompletedProcess[str]:
    """A command that must succeed, with `text` as its input."""
    env = without_job(environ)
    try:
        result = subprocess.run(
            argv, capture_output=True, text=True, errors="replace", timeout=timeout, env=env, input=text
        )
    except FileNotFoundError:
        raise CommandFailed(f"{argv[0]}: there is no such command here: is this a Slurm login node?") from None
    except subprocess.TimeoutExpired:
        raise ControllerAway(f"{argv[0]}: no answer within {timeout:.0f} s: is the Slurm controller up?") from None
    if result.returncode:
        called = " ".join(itertools.takewhile(lambda word: "=" not in word, argv[:3]))
        raise failure(called, result.returncode, result.stderr or result.stdout)
    return result


def failure(called: str, code: int, said: str) -> CommandFailed:
    """What the end of a Slurm command means, by its exit code and what it wrote."""
    words = own_words(said)
    message = f"{called}: exit {code}: {words or 'no message'}"
    if _NOT_SENT.search(words):
        return ControllerAway(message, words, sent=False)
    if _AWAY.search(words) or code < 0 or code in _KILLED:
        return ControllerAway(message, words)
    return CommandFailed(message, words)


def own_words(said: str) -> str:
    """What a Slurm command and its site wrote, in one line, without what every line begins with."""
    lines = (_OPENING.sub("", " ".join(line.split())) for line in said.splitlines())
    empty = ("", "Unspecified error", 'Try "sbatch --help" for more information')  # a site has said why before it
    told = dict.fromkeys(line for line in lines if line not in empty)
    return "; ".join(told)


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
    requeue: bool = True
    """Slurm would start it again."""


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
        end_time=unix(facts.get("EndTime", "")),
        preempt_time=unix(facts.get("PreemptTime", "")),
        nodes=int(facts.get("NumNodes", "1").partition("-")[0]),
        cpus=int(facts.get("NumCPUs", "1").partition("-")[0]),
        gpus_per_node=int(gpus[1]) if gpus else None,
        requeue=facts.get("Requeue") != "0",
    )


def show_job(job_id: str) -> JobFacts | None:
    """Facts of a job; None when Slurm has forgotten it (MinJobAge); of an array's task also while others of it
    are known."""
    try:
        return parse_job(run(["scontrol", "--oneliner", "show", "job", job_id]))
    except CommandFailed as error:
        if re.search(r"Invalid job id|Job \S+ not found", str(error)):
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


@cache  # so that who submits may have it judged early, and the sender once more for nothing
def rehearse(script: str) -> list[str]:
    """`sbatch --test-only` of a script's text: what Slurm and the site say to it, queueing nothing.

    Raises CommandFailed with their words when it is refused.
    """
    said = execute(["sbatch", "--test-only"], timeout=REHEARSAL_TIMEOUT, text=script).stderr
    start = re.search(r"to start at (\S+)", said)
    notes = [line.removeprefix("sbatch: ") for line in said.splitlines() if "to start at" not in line]
    return [*notes, *([f"Slurm expects it to start at {start[1]}"] if start else [])]


def check_fits_without(script: Path, nodes: str) -> None:
    """Raises CommandFailed when a job could not run without these nodes: an update would let it wait for ever."""
    run(["sbatch", "--test-only", f"--exclude={nodes}", str(script)])


def submit(script: Path, after: str, name: str) -> str:
    """Queue the successor of job `after`; its supervisor hears whom it follows. Returns its job id."""
    flags = ["--parsable", f"--dependency=afterany:{after}", f"--job-name={name}"]
    environ = without_path(os.environ, script.parent / "code")  # the script adds it: hop by hop it would grow
    return run(["sbatch", *flags, str(script), "--after", after], environ=environ).strip().split(";")[0]


def cancel(*job_ids: str) -> None:
    """Cancel jobs; one that has ended already is no error."""
    try:
        run(["scancel", *job_ids])
    except CommandFailed as error:
        if not re.search(r"Invalid job id|already complet", str(error)):
            raise


def requeue(job_id: str) -> None:
    """The same job again. It ends all steps at once, so it must be the last act of a job."""
    run(["scontrol", "requeue", job_id])


def broadcast(job_id: str, file: Path, target: Path) -> None:
    """A copy of a file on the own disk of every node of a job that runs: from node to node, not all from its disk."""
    run(["sbcast", "--force", f"--jobid={job_id}", str(file), str(target)], timeout=BROADCAST_TIMEOUT)


def update(job_id: str, **fields: str) -> None:
    """Change a job that waits or runs; what its owner may change differs from site to site."""
    run(["scontrol", "update", f"JobId={job_id}", *(f"{key}={value}" for key, value in fields.items())])


def site() -> Site | None:
    """This machine's Slurm; None: it has none. Raises CommandFailed when there is one that does not answer."""
    if CONF in os.environ and not Path(os.environ[CONF]).exists():
        return None  # scontrol would wait a minute for the file
    try:
        return site_facts.parse(run(["scontrol", "show", "config"], patience=PATIENCE))
    except CommandFailed as error:
        if "no such command" in str(error) or "configuration source" in str(error):
            return None
        raise


def partitions() -> list[Partition]:
    """Partitions of the cluster, from one sinfo. Raises CommandFailed."""
    return partition.parse(
        run(["sinfo", "--all", "--noheader", "--noconvert", f"--format={partition.FIELDS}"], patience=PATIENCE)
    )


def nodes() -> list[dict[str, str]]:
    """Every node as `scontrol show nodes` tells of it: NodeName, State, Partitions, BootTime, Reason, ..."""
    lines = run(["scontrol", "--oneliner", "show", "nodes"], patience=PATIENCE).splitlines()
    return [dict(re.findall(r"(\w+)=(.*?)(?=\s+\w+=|$)", line)) for line in lines if line]


def partition_access(name: str) -> dict[str, list[str]]:
    """AllowAccounts, DenyAccounts, AllowQos, DenyQos of a partition, each where it names some."""
    text = run(["scontrol", "--oneliner", "show", "partition", name], patience=PATIENCE)
    lists = dict(re.findall(r"\b((?:Allow|Deny)(?:Accounts|Qos))=(\S+)", text))
    return {key: value.split(",") for key, value in lists.items() if value not in ("ALL", "(null)")}


# --- what the accounting knows; never required: many sites have none, or none that users may ask ----------


def _accounting(*words: str) -> list[list[str]]:
    try:
        text = run(["sacctmgr", "--noheader", "--parsable2", "show", *words], timeout=5)
    except CommandFailed:
        return []
    return [line.split("|") for line in text.splitlines() if line]


def associations() -> tuple[set[str], set[str]]:
    """This user's accounts and QOSes."""
    user = pwd.getpwuid(os.getuid()).pw_name
    rows = _accounting("associations", f"user={user}", "format=Account,QOS")
    return {account for account, _ in rows}, {qos for _, names in rows for qos in names.split(",") if qos}


def qos_max_walltime(name: str) -> Walltime | None:
    """None: no limit, or none that we may know."""
    limits = [limit for qos, limit in _accounting("qos", name, "format=Name,MaxWall") if qos == name]
    return partition.read_limit(limits[0]) if limits else None


def reservations() -> list[str]:
    """Names of the reservations that stand; none where they cannot be asked for."""
    try:
        return re.findall(r"\bReservationName=(\S+)", run(["scontrol", "--oneliner", "show", "reservation"]))
    except CommandFailed:
        return []


def signal_newest_step(job_id: str, signum: str) -> None:
    """To the ranks that a job has just started: neither to its batch script, nor to the shell of an allocation, nor to
    what else its user runs there."""
    listed = run(["squeue", "--steps", "--noheader", "--format=%i", f"--jobs={sent_as(job_id)}"]).split()
    steps = [int(step.rpartition(".")[2]) for step in listed if re.fullmatch(rf"{re.escape(job_id)}\.\d+", step)]
    if steps:
        run(["scancel", f"--signal={signum}", f"{job_id}.{max(steps)}"])


# --- the queue ------------------------------------------------------------------------------------------


# Each task of an array by itself, as 812_4: also those that wait. With a suffix and no width nothing is padded or cut.
# The log's path is last: it may hold any character.
_FIELDS = ("JobArrayID", "State", "Reason", "TimeLeft", "Dependency", "StartTime", "TimeLimit")
_QUEUE = ("--array", f"--Format={''.join(f'{field}:|,' for field in _FIELDS)}STDOUT:")


@dataclass(frozen=True)
class QueueLine:
    job_id: str
    """812; of an array 812_3."""
    state: str
    reason: str
    left: str
    after: str | None
    """The job that it waits behind."""
    log: str
    """As sbatch was given it, with its %-patterns."""
    start: float | None = None
    """Unix seconds at which it started, or at which Slurm expects that; None: it does not say."""
    limit: Walltime | None = None

    @property
    def alive(self) -> bool:
        return self.state not in ENDED

    @property
    def log_folder(self) -> str:
        """As it is called where the job runs: %% and %a (of a sweep) filled in."""
        filled = {"%%": "%", "%a": self.job_id.partition("_")[2]}
        return re.sub("%%|%a", lambda found: filled[found[0]], os.path.dirname(self.log))

    def waits_behind(self, job_id: str) -> bool:
        """It starts when that one has ended: by its dependency, or as the next one of the same array."""
        same_array = "_" in job_id and sent_as(self.job_id) == sent_as(job_id) and self.job_id != job_id
        return self.state == "PENDING" and (same_array or self.after == job_id)

    def is_one_of(self, job_ids: Collection[str]) -> bool:
        """Whether these ids name it: by its own, or by that of its array."""
        return self.job_id in job_ids or sent_as(self.job_id) in job_ids


def sent_as(job_id: str) -> str:
    """The id that sbatch gave: an array's own for each job of it."""
    return job_id.partition("_")[0]


def parse_queue(text: str) -> list[QueueLine]:
    found = []
    for line in filter(str.strip, text.splitlines()):
        job_id, state, reason, left, dependency, start, limit, log = line.split("|", 7)
        after = re.search(r"afterany:(\d+(?:_\d+)?)", dependency)
        told = left, after[1] if after else None, log.rstrip(), unix(start), partition.read_limit(limit)
        found.append(QueueLine(job_id, state, reason, *told))
    return found


def queue(job_ids: Collection[str], ended: bool = False) -> dict[str, QueueLine]:
    """Jobs of these ids that wait or run, from one squeue; of an array each task by itself. `ended`: also those that
    have ended, for as long as Slurm remembers them."""
    asked = ",".join(dict.fromkeys(map(sent_as, job_ids)))
    if not asked:
        return {}
    try:
        states = ["--states=all"] if ended else []
        text = run(["squeue", "--noheader", *states, *_QUEUE, f"--jobs={asked}"])
    except CommandFailed as error:
        if "Invalid job id" in str(error):  # squeue's answer when it knows none of them
            return {}
        raise
    wanted = set(job_ids)
    return {line.job_id: line for line in parse_queue(text) if line.is_one_of(wanted)}


def jobs_of(log_folders: Collection[str], patience: float = 0.0) -> list[QueueLine]:
    """This user's jobs that log into these folders, also those whose id nobody could write down, from one squeue.

    In any state: ENDED ones are among them for as long as Slurm remembers them.
    """
    text = run(["squeue", "--noheader", "--states=all", *_QUEUE, f"--user={os.getuid()}"], patience=patience)
    return [line for line in parse_queue(text) if line.log_folder in log_folders]
