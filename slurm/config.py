"""How a run is asked of Slurm: the typed job config (RUN_DIR/job.yaml holds it complete)."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from msgspec import Meta, field
from msgspec.structs import replace

from settings import ConfigError, Struct, convert, expanded, read_yaml
from slurm.environment import OWN_DISK, is_secret
from slurm.node.agents import AGENTS
from slurm.walltime import Walltime

Count = Annotated[int, Meta(ge=1)]
MailTypes = Annotated[str, Meta(pattern=r"^[A-Za-z_0-9]+(,[A-Za-z_0-9]+)*$")]
_ALL_MAILS = "BEGIN,END,FAIL,REQUEUE,STAGE_OUT"  # INVALID_DEPEND is of newer Slurms


class Network(Struct, frozen=True):
    environment: dict[str, str | int] = {}
    """Variables of the ranks, where nobody else has set them."""
    host_suffix: str = ""
    """What makes a node's name that of its fast interface."""


Event = Literal["start", "continuation", "stop", "done", "no_progress"]


class Notify(Struct, frozen=True):
    """Who is told how the run goes, by its supervisor."""

    webhook: str | None = None
    """$NAME of the variable of your shell that holds its URL, which is a secret: it gets a small JSON."""
    command: list[str] = []
    """Words of a command on the batch host; {text}, {event}, {run}, {step} are filled in, and the JSON is its input."""
    events: list[Event] = field(default_factory=lambda: list(get_args(Event)))


class JobConfig(Struct, frozen=True):
    name: str
    """Name of the run: its folder under runs/ and its job name."""
    nodes: Count = 1
    gpus_per_node: Count = 1
    """GPUs, and so ranks, on each node."""
    walltime: Walltime | None = None
    """Time limit of one job; None: the partition's default."""
    time_min: Walltime | None = None
    """A shorter limit that Slurm may choose so that the job starts earlier; the run goes by the real one."""
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    reservation: str | None = None
    nodelist: str | None = None
    exclude: str | None = None
    mem: str | None = None
    """Memory of a node, as sbatch takes it; `0` asks for all of it."""
    cpus_per_gpu: Count | None = None
    """CPU cores for each rank; None: the partition's default."""
    gpus_by: Literal["gpus-per-node", "gres", "gpus-per-task", "none"] = "gpus-per-node"
    """The option by which this site is asked for GPUs; none: its nodes come with them."""
    gpu_type: str | None = None
    """Their kind, where the site wants it named: --gres=gpu:a100:4."""
    mail_user: str | None = None
    """Who gets Slurm's mails; None: the submitting user."""
    mail_type: MailTypes | None = None
    """What Slurm mails: BEGIN, END, FAIL, TIME_LIMIT_80 ...; END is mailed for the run's last job alone. None: END,FAIL
    to mail_user, and where there is none no mail."""
    notify: Notify | None = None
    """A webhook, or a command, that is told of starts and ends."""
    sbatch: dict[str, str | int | bool] = {}
    """Any other sbatch option by its long name; true is a flag without a value."""
    setup: list[str] = []
    """Shell lines that run before Python on the batch host (module loads); one that fails ends the job."""
    environment: dict[str, str] = {}
    """Variables of the ranks. No secrets: this file is readable by whoever reads the run folder."""
    network: Network = Network()
    """How the ranks reach each other: the profile's, and what is said here beside it."""
    node_local: str = OWN_DISK
    """A folder on each node's own disk, for compilers' caches and the archive; the node's $VARIABLES count."""
    archive: str | None = None
    """A packed environment (.tar, .tar.gz): every node unpacks it to its own disk, and the ranks run from there.
    `launch.py prepare` packs this virtual environment into it; conda-pack does a conda environment."""
    launcher: Literal["srun", "torchrun", "deepspeed", "fork"] = "srun"
    """srun: one task a rank. torchrun, deepspeed: their own agent on each node. fork: one process a node imports once
    and forks its ranks."""
    rank_command: list[str] = []
    """Words before the ranks' Python, where their software is not the host's: [apptainer, exec, --nv, --bind,
    "{binds}", image.sif]. {run_dir} and {binds} (host:host,...) are filled in; a word with {bind} (host:host) stands
    once for each folder."""
    rank_python: str | None = None
    """The ranks' Python, 3.11 or newer; None: this one, and with a rank command `python3`."""
    binds: list[str] = []
    """Folders besides the run's that the ranks need, for {binds} in the rank command."""
    srun_args: list[str] = []
    """More words for srun (pyxis: --container-image=...; then give rank_python as well)."""
    continue_by: Literal["auto", "chain", "array", "requeue", "none"] = "auto"
    """chain: a successor job waits in the queue. array: several do, one runs at a time. requeue: the same job id again.
    auto: array where jobs that wait for nothing but nodes gain priority by it, else chain."""
    array_jobs: Annotated[int, Meta(ge=2)] = 8
    """Jobs of an array; the last one queues the next array."""
    max_attempts: Count | None = None
    """Starts of the ranks after which the run ends unfinished."""
    max_gpu_hours: Annotated[float, Meta(gt=0)] | None = None
    """Allocated GPU-hours after which the run ends unfinished."""
    poll_seconds: Annotated[float, Meta(gt=0)] = 30.0
    """Seconds between two questions to Slurm about end time and preemption."""
    lead_seconds: Annotated[float, Meta(ge=0)] = 120.0
    """Seconds before the deadline at which a foreign command is told to stop; the trainer measures its own."""
    exclude_bad_nodes: bool = True
    """The next job keeps away from a node on which two attempts failed within a day; false: the site forbids that."""
    purge_days: Count | None = None
    """Days without an access after which the site removes what lies in the run's folder; None: nobody knows of it."""
    share: bool = False
    """The group may read the run; default: its user alone."""
    snapshot: bool = True
    """A foreign command's code is copied at submission, and the copy runs."""
    cluster: str = "generic"
    """The profile that this job was resolved with; `local`: no scheduler."""
    command: list[str] | None = None
    """A foreign command that the ranks run instead of the trainer."""
    workdir: str | None = None
    """The folder that it runs in, also after a resume from another one; default: where it was typed."""
    stop_signal: Literal["TERM", "USR1", "USR2", "INT"] = "TERM"
    """What asks a foreign command to save, whatever the word to stop came by."""
    progress: str | None = None
    """Files of a foreign command, as a pattern relative to the working folder or the run's: a new or newer match in an
    attempt is progress."""

    @property
    def world_size(self) -> int:
        return self.nodes * self.gpus_per_node

    @property
    def chained(self) -> bool:
        """A job waits to go on while this one runs."""
        return self.continue_by in ("auto", "chain", "array")

    @property
    def mails(self) -> list[str]:
        """What Slurm mails, ALL written out."""
        kinds = (self.mail_type or ("END,FAIL" if self.mail_user else "")).upper()
        return [kind for kind in kinds.replace("ALL", _ALL_MAILS).split(",") if kind]

    @property
    def mails_on_the_way(self) -> list[str]:
        """What is mailed for a job that another may follow: its end is not the run's."""
        return [kind for kind in self.mails if kind != "END" or self.continue_by == "none"]

    @property
    def python(self) -> str:
        """The Python where the ranks are."""
        return self.rank_python or ("python3" if self.rank_command else sys.executable)

    @property
    def layout(self) -> str:
        return layout(self.nodes, self.gpus_per_node)


def layout(nodes: int, gpus: int) -> str:
    """`2 nodes x 8 GPUs = 16 ranks`: sbatch's own --gpus is a total, so it is always said."""
    return f"{counted(nodes, 'node')} x {counted(gpus, 'GPU')} = {counted(nodes * gpus, 'rank')}"


def counted(count: int, word: str) -> str:
    return f"{count} {word}{'s' * (count != 1)}"


def make_job(data: Mapping[str, Any], source: str) -> JobConfig:
    """A user's words as a checked job. Raises ConfigError."""
    job = convert(data, JobConfig, source)
    if archive := archive_of(data, source):
        job = replace(job, archive=str(archive))
        if job.rank_command:
            raise ConfigError(f"{source}: archive and rank_command both say where the ranks' software is: take one")
    if job.workdir is not None:
        job = replace(job, workdir=str(Path.cwd() / Path(expanded(job.workdir, f"{source}: workdir")).expanduser()))
    refuse_secrets(job, source)
    check_notify(job, source)
    check_times(job)
    check_binds(job)
    check_command_only(job, source)
    return job


def archive_of(data: Mapping[str, Any], source: str) -> Path | None:
    """Where a job's packed environment lies, with the $VARIABLES of this shell. Raises ConfigError."""
    path = expanded(data.get("archive") or "", f"{source}: archive")
    return Path.cwd() / path if path else None


def check_command_only(job: JobConfig, source: str) -> None:
    """What is said of a foreign command must not be lost on the trainer. Raises ConfigError."""
    given = {"stop_signal": job.stop_signal != "TERM", "progress": job.progress is not None, "workdir": job.workdir}
    for name in (name for name, said in given.items() if said and job.command is None):
        raise _of_a_command(name, source)


def check_command_layers(layers: Iterable[tuple[Mapping[str, Any], str]], command: object) -> None:
    """The same of what a profile may say for all commands of its site. Raises ConfigError."""
    for layer, source in layers:
        for name in {"lead_seconds", "snapshot"} & layer.keys() if command is None else ():
            raise _of_a_command(name, source)


def _of_a_command(name: str, source: str) -> ConfigError:
    return ConfigError(
        f"{source}: {name} is for a command after --: the trainer hears every signal, measures its lead and its steps, "
        f"runs from a copy, and its files count from the recipe"
    )


def check_notify(job: JobConfig, source: str) -> None:
    """A webhook's address comes from the shell, as every secret. Raises ConfigError."""
    webhook = job.notify.webhook if job.notify else None
    if webhook is None:
        return
    if not re.fullmatch(r"\$[A-Za-z_]\w*", webhook):
        raise ConfigError(
            f"{source}: notify.webhook: its address would be written to files: type `export OUTLAST_WEBHOOK=...` in "
            "your shell, and give '$OUTLAST_WEBHOOK' here"
        )
    if webhook[1:] not in os.environ:
        raise ConfigError(f"{source}: notify.webhook={webhook}: {webhook[1:]} is not set in this shell: export it")


def check_times(job: JobConfig) -> None:
    """A job must last as long as is asked of it. Raises ConfigError."""
    if job.time_min and job.walltime and job.time_min > job.walltime:
        raise ConfigError(
            f"--time-min {job.time_min} is longer than --walltime {job.walltime}: Slurm may only shorten it"
        )
    shortest, flag = (job.time_min, "--time-min") if job.time_min else (job.walltime, "--walltime")
    if job.command and shortest and job.lead_seconds >= shortest.total_seconds():
        raise ConfigError(
            f"{flag} {shortest}: the command is told to stop {job.lead_seconds:g} s before its end, which is at once: "
            f"take a longer one, or --lead {shortest.total_seconds() / 4:.0f}"
        )


def check_binds(job: JobConfig) -> None:
    """Folders go to the rank command as host:host,... Raises ConfigError."""
    bound = job.binds if re.search("{binds?}", " ".join(job.rank_command)) else []
    for path in (path for path in bound if re.search(r"[:,]", path)):
        raise ConfigError(f"{path}: a folder with a colon or a comma cannot be bound by a rank command: rename it")


def check_launcher(job: JobConfig) -> None:
    """For a job that starts from here: an agent's package must be in this Python, if it is the ranks'. Raises
    ConfigError."""
    if job.archive and not Path(job.archive).is_file():
        raise ConfigError(
            f"archive={job.archive}: there is no such file: launch.py prepare RECIPE packs this environment"
        )
    agent = AGENTS.get(job.launcher)
    package = agent.package if agent else None
    if package and job.python == sys.executable and not job.srun_args and find_spec(package) is None:
        raise ConfigError(f"--launcher {job.launcher}: {sys.executable} has no {package}: install it, or take another")


def refuse_secrets(job: JobConfig, source: str) -> None:
    """What the job is told is written to job.yaml and submission.sh; the submitting shell's variables are not."""
    # In a set-up line a name may get what a command or another variable holds: that value is in no file of ours.
    lines = "\n".join(job.setup)
    assigned = re.findall(r"(?:^|[;&]|\bexport)\s*([A-Za-z_]\w*)=(?![\"']?[$`])", lines, re.MULTILINE)
    assigned += re.findall(r"\s([A-Z_][A-Z0-9_]*)=(?![\"']?[$`])", lines)  # export A=1 HF_TOKEN=x
    exported = re.findall(r"([A-Za-z_]\w*)=", " ".join([str(job.sbatch.get("export", "")), *job.srun_args]))
    started = re.findall(r"(?<![\w-])([A-Z_][A-Z0-9_]*)=", "\n".join([*job.rank_command, *(job.command or ())]))
    ours = {**job.environment, **job.network.environment}
    for where, names in (("environment", ours), ("setup", assigned), ("export", exported), ("command", started)):
        for name in filter(is_secret, names):
            raise ConfigError(
                f"{source}: {where}: {name} is a secret and would be written to files: type `export {name}=...` in"
                " your shell before launch.py, and the ranks get it from there"
            )


def read_job(run_dir: Path) -> JobConfig:
    path = run_dir / "job.yaml"
    return convert(read_yaml(path), JobConfig, str(path))
