"""From a checked config to a run folder and a job in the queue."""

from __future__ import annotations

import dataclasses
import errno
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from durable import fsync_path, keep, nonce, write_atomic
from settings import ConfigError, convert, dump_yaml, merge, override, to_plain
from slurm import commands, environment, launches, snapshot
from slurm.config import JobConfig, check_binds, check_command_layers, check_launcher, make_job
from slurm.errors import CommandFailed, ControllerAway
from slurm.launches import Launch
from slurm.rundir import RunDir
from slurm.script import options, submission_text
from slurm.sites import cluster as clusters
from slurm.sites import refusals, run_root, site_rules
from slurm.sites.cluster import Cluster
from slurm.snapshot import CommandCode

_NAME = r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}"


@dataclass(frozen=True)
class Submission:
    job: JobConfig
    cluster: Cluster
    run: RunDir
    config_text: str | None
    """The trainer's resolved config; None for a foreign command."""
    batch: str = ""
    """How the ranks share a global batch, in words."""
    code: CommandCode | None = None
    """Of a foreign command: what is copied, and runs."""
    fork: Path | None = None
    """Another run's checkpoint that this one starts from."""
    task: int | None = None
    """Its number in the arrays of its sweep, whose code it runs."""
    proposed: str = ""
    """What is said of limits that nobody has given."""

    @property
    def script(self) -> str:
        # The trainer's files are named whole; only a foreign command counts them from where it was typed.
        workdir = Path(self.job.workdir or Path.cwd()) if self.job.command else self.run.path
        return submission_text(self.job, self.run.path, Path(sys.executable), workdir)


Layers = list[tuple[Mapping[str, Any], str]]
"""What is said of a job, each with its source; a later one wins."""


def asked_job(layers: Layers, cluster: Cluster) -> JobConfig:
    """The job of defaults < profile < recipe < flags < key=value, as its site takes it. Raises ConfigError."""
    job = merged_job(layers, cluster)
    site_rules.check(job, cluster.profile, cluster.version)
    clusters.check_fits(job, cluster)
    return job


def merged_job(layers: Layers, cluster: Cluster) -> JobConfig:
    """The same before the site's limits are looked at. Raises ConfigError."""
    account = environment.account()
    data: dict[str, Any] = {"account": account} if account else {}
    for layer, source in ((cluster.profile.job, f"profile {cluster.profile.name}"), *layers):
        check_fields(layer, source)  # alone, so that a mistake is told with its own source
        data = merge(data, layer)
    check_command_layers(layers, data.get("command"))
    data["cluster"] = cluster.reference
    if "gpus_per_node" not in data:
        data["gpus_per_node"] = clusters.full_node(data.get("partition"), cluster)
    check_name(str(data.get("name")))
    job = make_job(site_rules.fitted(data, cluster.profile), source)
    check_sbatch_table(job)
    return job


def check_fields(layer: Any, source: str) -> None:
    """What one source says of a job. Raises ConfigError."""
    if not isinstance(layer, Mapping):
        raise ConfigError(f"{source}: job={layer}: a mapping of job settings is expected, as nodes: 2")
    convert({"name": "x", **layer}, JobConfig, source)


def check_name(name: str) -> None:
    """A run's name is a folder's, a job's and a word of a shell. Raises ConfigError with one that can be."""
    if not re.fullmatch(_NAME, name):
        near = re.sub(r"[^A-Za-z0-9._+]+", "-", name).strip("-.+_")[:100] or "NAME"
        raise ConfigError(f"the name {name!r}: letters, digits and . _ + - only, at most 100: take --name {near}")


def placed(job: JobConfig, run: RunDir, cluster: Cluster) -> JobConfig:
    """The job of this run, which knows what becomes of its folder, and where its command was typed. Raises
    ConfigError."""
    if job.workdir and cluster.live and not Path(job.workdir).is_dir():
        raise ConfigError(f"job.workdir={job.workdir}: there is no such folder")
    workdir = job.workdir or str(Path.cwd()) if job.command else None
    return replace(job, name=run.name, purge_days=run_root.purge_days(run.path, cluster.profile), workdir=workdir)


def check_folder(path: Path) -> None:
    """Raises ConfigError for what a line of a batch script, or its PYTHONPATH, cannot hold."""
    # After a backslash sbatch reads no %j.
    if any(not char.isprintable() or char in f"\\{os.pathsep}" for char in str(path)):
        raise ConfigError(f"the folder {str(path)!r}: a batch script cannot name it: take another --runs-dir")


def check_sbatch_table(job: JobConfig) -> None:
    """What has its own flag, or what the continuation depends on, is not given a second time. Raises ConfigError."""
    ours = {key for key, _ in options(replace(job, sbatch={}), Path(), Path())} - {"gres"}
    taken = ours | {"requeue", "no-requeue", "time", "dependency", "array", "mail-type", "mail-user"}
    for key in job.sbatch:
        if key in taken or len(key) == 1:
            raise ConfigError(f"--sbatch {key}: launch.py sets it: see its own flags in --help")


def job_words(assignments: list[str]) -> tuple[dict[str, Any], list[str]]:
    """`key=value` words: the job's (`job.nodes=2`) as a tree, and the others. Raises ConfigError."""
    ours = [word for word in assignments if word.startswith(("job.", "job="))]
    spoken: dict[str, Any] = {}
    for assignment in ours:
        spoken = override(spoken, assignment)
    fields = spoken.get("job", {})
    if not isinstance(fields, dict):
        raise ConfigError(f"job={fields}: a mapping of job settings is expected, as job.nodes=2")
    return fields, [word for word in assignments if word not in ours]


def command_name(command: list[str]) -> str:
    """What a foreign command is called: its script, its module, or its program."""
    module = command[command.index("-m") + 1 : command.index("-m") + 2] if "-m" in command else []
    scripts = [word for word in command if word.endswith((".py", ".sh"))]
    return Path([*scripts, *module, *command, "run"][0]).stem


def with_config(submission: Submission, text: str, batch: str, folders: list[str]) -> Submission:
    """With the trainer's config, as the trainer's half has checked it, and the folders that its ranks must see."""
    job, soon = submission.job, run_root.expiring(folders, submission.cluster.profile)
    if job.rank_command:
        # Also another run's checkpoint: what this run keeps of it may be a link.
        fork = [str(submission.fork)] if submission.fork else []
        job = replace(job, binds=list(dict.fromkeys([*job.binds, *folders, *fork])))
        check_binds(job)
    return dataclasses.replace(submission, job=job, config_text=text, batch="\n".join([batch, *soon]))


def with_code(submission: Submission) -> Submission:
    """A foreign command as it will run: from a copy of its code. Raises ConfigError when that is too large."""
    job, command, cwd = submission.job, submission.job.command or [], Path(submission.job.workdir or Path.cwd())
    code = snapshot.of_command(command, cwd) if job.snapshot else None
    if code is None:
        return submission
    target = command_copy(submission.run)
    paths = snapshot.module_path(command, code, target, cwd)
    job = replace(job, command=snapshot.copied(command, code, target, cwd), environment={**paths, **job.environment})
    return dataclasses.replace(submission, job=job, code=code)


def name_run(job: JobConfig, runs_dir: Path, named: bool) -> JobConfig:
    """The name that this run can take: a finished run's default name gets a number. Raises ConfigError."""
    name, number = job.name, 2
    while _is_run(runs_dir / name):
        run = RunDir(runs_dir / name)
        if not run.done:
            raise ConfigError(
                f"the run {name} is not finished: go on with launch.py resume {name}, or start another: --name NAME"
            )
        if named:
            raise ConfigError(
                f"the run {name} is done: look at it with launch.py status {name}, or take another --name"
            )
        name, number = f"{job.name}-{number}", number + 1
    return replace(job, name=name)


def _is_run(folder: Path) -> bool:
    """Raises ConfigError for somebody else's private folder."""
    try:
        return (folder / "job.yaml").exists()
    except PermissionError:
        raise ConfigError(f"{folder} is private to another user: take another --name") from None


def write_run_dir(submission: Submission) -> None:
    """Everything that the run is, in its folder, before anything is queued: whole, or not there. Raises ConfigError."""
    run, job = submission.run, submission.job
    check_folder(run.path)
    check_launcher(job)
    if run.path.exists():  # also an empty one: a refused submission removes its folder again
        raise ConfigError(f"{run.path} is there and is no run: take another --name or --runs-dir")
    if job.share:
        os.umask(0o027)
    fresh = run.path.with_name(f".{run.name}-{nonce()}")
    try:
        run.path.parent.mkdir(parents=True, exist_ok=True)
        fresh.mkdir(mode=0o750 if job.share else 0o700)
        _fill(submission, RunDir(fresh))
        fresh.rename(run.path)
        fsync_path(run.path.parent)
    except OSError as error:  # also another submission of the same name
        raise unwritable(run, error) from None
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def unwritable(run: RunDir, error: OSError) -> Exception:
    """A folder that takes no files is the user's mistake; anything else stays as it is."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
    if full or str(error.filename).startswith(str(run.path.parent)):
        return ConfigError(f"--runs-dir {run.path.parent}: {error.strerror}: choose another folder for the runs")
    return error


def _fill(submission: Submission, run: RunDir) -> None:
    """`run` is where the folder is made; what its files say of it is where it will be."""
    for folder in (run.claims_dir, run.logs, run.path / "submitit"):
        folder.mkdir()
    if submission.task is not None:
        write_atomic(run.path / "task", f"{submission.task}\n")
    if submission.task is None or submission.job.rank_command:  # a container need not see more than the run's folder
        snapshot.copy_ours(run.path)
    else:
        snapshot.link_ours(run.path)
    if submission.code is not None:
        snapshot.copy_command(submission.code, command_copy(run))
    if submission.fork is not None:
        keep(submission.fork, fork_copy(run, submission.fork))
    if submission.config_text is not None:
        write_atomic(run.path / "config.yaml", submission.config_text)
    write_job(submission, run)


def rewrite(submission: Submission, update_code: bool) -> None:
    """The run's files as it goes on with them. Raises ConfigError."""
    run = submission.run
    check_launcher(submission.job)
    if submission.job.share:  # also what comes after this
        os.umask(0o027)
    if update_code:
        snapshot.copy_ours(run.path)
    if submission.config_text is not None:
        write_atomic(run.path / "config.yaml", submission.config_text)
    write_job(submission, run)


def write_job(submission: Submission, run: RunDir) -> None:
    """What the supervisor reads of the job, and what sbatch does. A field without a value is left out: the run's copy
    of our code may be older than the field."""
    given = {key: value for key, value in to_plain(submission.job).items() if value is not None}
    write_atomic(run.path / "job.yaml", dump_yaml(given))
    write_atomic(run.script, submission.script)


def command_copy(run: RunDir) -> Path:
    """Where a foreign command's code is copied."""
    return run.path / "command"


def fork_copy(run: RunDir, checkpoint: Path) -> Path:
    """Where a run keeps the checkpoint of another that it starts from."""
    return run.path / "fork" / checkpoint.name


def rehearse(submission: Submission) -> list[str]:
    """Let Slurm judge the very script that will be sent, before anything is written or queued. Returns what it says.

    Raises ConfigError for what it refuses, CommandFailed when it does not answer.
    """
    if not submission.cluster.live:
        return []
    try:
        return commands.rehearse(submission.script)
    except CommandFailed as error:
        chosen = submission.cluster.chosen(submission.job.partition)
        if refusals.NO_SUCH_NODES.search(error.words) and any(partition.short for partition in chosen):
            return []  # perhaps only as long as nodes are down: sbatch itself refuses what can never be
        if _finds_no_places(submission, error):
            return rehearse(_chained(submission))
        raise _explained(error, submission) from None


def send(submission: Submission) -> tuple[Submission, str]:
    """Queue the run's job, once. Returns what was sent and its id: where an array finds no places, a chain goes.

    Raises ConfigError for what Slurm refuses and for a run that has a job in the queue, else CommandFailed; what may
    have been queued all the same is then told, and `launches.reconcile` finds it.
    """
    run = submission.run
    number = launches.newest(run) + 1  # before the look into the queue: another launch.py may send after that
    launches.reconcile(run)
    launches.check_free(run)
    rehearse(submission)
    try:
        launch = launches.begin(run, number)
    except OSError as error:
        raise unwritable(run, error) from None
    try:
        submission, job_id = _send_what_fits(submission)
    except (CommandFailed, OSError, KeyboardInterrupt) as error:
        return submission, _look_for_job(submission, launch, error)
    try:
        run.record_job(job_id, after=None)
    except OSError as error:  # the submission stays unsettled: who asks next finds the job
        told = f"job {job_id} is in the queue, but {run.path} takes no more files ({error.strerror})"
        raise CommandFailed(f"{told}: make room, then look with launch.py status {run.name}") from None
    return submission, job_id


def _send_what_fits(submission: Submission) -> tuple[Submission, str]:
    """An array takes a place in the queue for each of its jobs, which a user's limits may not give."""
    try:
        return submission, _sbatch(submission)
    except CommandFailed as error:
        if not _finds_no_places(submission, error):
            raise
    chain = _chained(submission)
    write_job(chain, chain.run)
    return chain, _sbatch(chain)


def _finds_no_places(submission: Submission, error: CommandFailed) -> bool:
    refused = not isinstance(error, ControllerAway) and refusals.NO_PLACES.search(error.words)
    return bool(submission.job.continue_by == "array" and refused)


def _chained(submission: Submission) -> Submission:
    return dataclasses.replace(submission, job=replace(submission.job, continue_by="chain"))


def _sbatch(submission: Submission) -> str:
    """Repeated while it is certain that nothing has reached the controller."""
    from slurm.submit import submit  # 0.1 s to import: only who submits pays

    end = time.monotonic() + commands.PATIENCE
    while True:
        try:
            return submit(submission.run, submission.job.world_size)
        except ControllerAway as error:
            if error.sent or time.monotonic() > end:
                raise
        time.sleep(1)


def _look_for_job(submission: Submission, launch: Launch, error: BaseException) -> str:
    """The id of the job when it was queued all the same: an sbatch that fails need not know. Raises what send does."""
    run, told = submission.run, str(error) or "interrupted"
    try:
        launches.reconcile(run)
    except CommandFailed as unknown:
        raise CommandFailed(
            f"{told}: a job of {run.name} may be in the queue all the same ({unknown}): when Slurm answers again, "
            f"launch.py resume {run.name} finds it or sends it"
        ) from None
    found = run.jobs()[launch.jobs :]
    if found:
        return str(found[0]["job"])
    refusal = _explained(error, submission) if isinstance(error, CommandFailed) else None
    raise refusal if isinstance(refusal, ConfigError) else CommandFailed(f"{told}: nothing was queued") from None


def _explained(error: CommandFailed, submission: Submission) -> Exception:
    """A refusal in the user's words; what is not the user's mistake stays as it is."""
    if isinstance(error, ControllerAway) or not error.words or refusals.NOT_NOW.search(error.words):
        return error
    job, cluster = submission.job, submission.cluster
    return ConfigError(refusals.explain(error.words, job, lambda field: clusters.valid_names(field, job, cluster)))


def prepare_data(*submissions: Submission) -> None:
    """Tokenize on the login node, so that bad data is found before the queue; what several share once. Raises
    ConfigError."""
    configs = [str(one.run.path / "config.yaml") for one in submissions]
    result = subprocess.run(
        [sys.executable, "-P", "-m", "trainer.prepare", *configs],
        env=snapshot.code_environment(submissions[0].run.path / "code"),
        stderr=subprocess.PIPE,
        text=True,
    )
    if result.returncode:
        said = result.stderr.strip().rpartition("\n")[2].removeprefix("outlast: ")
        raise ConfigError(said or f"{configs[0]}: the data could not be prepared")


def discard(submission: Submission) -> None:
    """Remove a run folder whose first submission was refused: nothing of it has run, and no job of it can come."""
    run = submission.run
    if not run.jobs() and not run.newest_epoch() and launches.unsettled(run) is None:
        shutil.rmtree(run.path)
