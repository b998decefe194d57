"""From a checked config to a run folder and a job in the queue."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from durable import fsync_path, write_atomic
from settings import ConfigError, convert, dump_yaml, merge, to_plain
from slurm import cluster as clusters
from slurm import commands, environment, launches, refusals
from slurm.cluster import Cluster
from slurm.config import JobConfig
from slurm.errors import CommandFailed, ControllerAway
from slurm.launches import Launch
from slurm.rundir import RunDir
from slurm.script import options, submission_text

ROOT = Path(__file__).parent.parent
CODE = ("settings.py", "durable.py", "launch.py", "slurm", "trainer")


@dataclass(frozen=True)
class Submission:
    job: JobConfig
    cluster: Cluster
    run: RunDir
    config_text: str | None
    """The trainer's resolved config; None for a foreign command."""

    @property
    def script(self) -> str:
        return submission_text(self.job, self.run.path, Path(sys.executable), Path.cwd())


def resolve_job(layers: list[Mapping[str, Any]], cluster: Cluster, source: str) -> JobConfig:
    """The job of defaults < profile < recipe < flags < key=value. Raises ConfigError."""
    account = environment.account()
    data: dict[str, Any] = {"account": account} if account else {}
    for layer in (cluster.profile.job, *layers):
        data = merge(data, layer)
    data["cluster"] = cluster.profile.name
    if "gpus_per_node" not in data:
        data["gpus_per_node"] = clusters.full_node(data.get("partition"), cluster)
    job = convert(data, JobConfig, source)
    check_sbatch_table(job)
    clusters.check_fits(job, cluster)
    return job


def check_sbatch_table(job: JobConfig) -> None:
    """What has its own flag, or what the continuation depends on, is not given a second time. Raises ConfigError."""
    taken = {key for key, _ in options(job, Path(), Path())} | {"requeue", "no-requeue", "time", "dependency", "array"}
    for key in job.sbatch:
        if key in taken or len(key) == 1:
            raise ConfigError(f"--sbatch {key}: launch.py sets it: see its own flags in --help")


def name_run(job: JobConfig, runs_dir: Path, named: bool) -> JobConfig:
    """The name that this run can take: a finished run's default name gets a number. Raises ConfigError."""
    name, number = job.name, 2
    while (runs_dir / name / "job.yaml").exists():
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


def write_run_dir(submission: Submission) -> None:
    """Everything that the run is, in its folder, before anything is queued: whole or not there. Raises ConfigError."""
    run = submission.run
    staging = run.path.parent / ".new"
    building = RunDir(staging / f"{run.name}-{secrets.token_hex(4)}")
    try:
        building.path.mkdir(parents=True)
        _fill(submission, building)
        os.rename(building.path, run.path)  # fails on a folder with anything in it
        fsync_path(run.path.parent)
    except OSError as error:
        if run.path.exists():
            raise ConfigError(f"{run.path} is there and is no run: take another --name or --runs-dir") from None
        raise unwritable(run, error) from None
    finally:
        shutil.rmtree(building.path, ignore_errors=True)
        with suppress(OSError):  # another launch.py builds there
            staging.rmdir()


def unwritable(run: RunDir, error: OSError) -> ConfigError:
    """A quota that is full, a folder that is read-only."""
    first = error.args[0][0][2] if isinstance(error, shutil.Error) else error.strerror  # copytree gathers what failed
    return ConfigError(f"--runs-dir {run.path.parent}: {first}: choose another folder for the runs")


def _fill(submission: Submission, run: RunDir) -> None:
    for folder in (run.claims_dir, run.logs, run.path / "submitit"):
        folder.mkdir()
    snapshot_code(run)
    if submission.config_text is not None:
        write_atomic(run.path / "config.yaml", submission.config_text)
    write_atomic(run.script, submission.script)
    write_atomic(run.path / "job.yaml", dump_yaml(to_plain(submission.job)))


def snapshot_code(run: RunDir) -> None:
    """A copy of what will run, so that an edit in the checkout cannot change a run between two attempts."""
    code = run.path / "code"
    code.mkdir(exist_ok=True)
    for name in CODE:
        source, target = ROOT / name, code / name
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(source, target)


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
        raise _explained(error, submission) from None


def send(submission: Submission) -> str:
    """Queue the run's job, once. Returns its id.

    Raises ConfigError for what Slurm refuses and for a run that has a job in the queue, else CommandFailed; what may
    have been queued all the same is then told, and `launches.reconcile` finds it.
    """
    run = submission.run
    number = (
        launches.newest(run) + 1
    )  # read before the queue is looked at: who has looked in vain may still be too late
    launches.reconcile(run)
    launches.check_free(run)
    rehearse(submission)
    try:
        launch = launches.begin(run, number)
    except OSError as error:
        raise unwritable(run, error) from None
    try:
        job_id = _sbatch(submission)
    except (CommandFailed, OSError, KeyboardInterrupt) as error:
        return _look_for_job(submission, launch, error)
    run.record_job(job_id, after=None)
    return job_id


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


def prepare_data(submission: Submission) -> None:
    """Tokenize on the login node, so that bad data is found before the queue. Raises ConfigError."""
    config = submission.run.path / "config.yaml"
    result = subprocess.run(
        [sys.executable, "-P", "-m", "trainer.prepare", str(config)],
        env=code_environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    if result.returncode:
        lines = result.stderr.strip().splitlines()
        raise ConfigError(lines[-1].removeprefix("outlast: ") if lines else f"{config}: the data could not be prepared")


def discard(submission: Submission) -> None:
    """Remove a run folder whose first submission was refused: nothing of it has run, and no job of it can come."""
    run = submission.run
    if not run.jobs() and launches.unsettled(run) is None:
        shutil.rmtree(run.path)


def code_environment() -> dict[str, str]:
    """This process's environment, for a child that runs our code from here."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
