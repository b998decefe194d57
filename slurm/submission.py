"""From a checked config to a run folder and a job in the queue."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from durable import write_atomic
from settings import ConfigError, dump_yaml, merge, to_plain
from slurm import cluster as clusters
from slurm import environment
from slurm.cluster import Cluster
from slurm.config import JobConfig, make_job
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
    job = make_job(data, source)
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
    """Everything that the run is, in its folder, before anything is queued."""
    run = submission.run
    try:
        run.path.mkdir(parents=True)  # never one that is there: a refused submission removes its folder again
    except FileExistsError:
        raise ConfigError(f"{run.path} is there and is no run: take another --name or --runs-dir") from None
    for folder in (run.claims_dir, run.path / "logs", run.path / "submitit"):
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


def send(submission: Submission) -> str:
    """Queue the run's job. Returns its id. Raises CommandFailed; the folder of a first submission is then removed."""
    from slurm.submit import submit  # 0.1 s to import: only who submits pays

    return str(submit(submission.run, submission.job.world_size).job_id)


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
    """Remove a run folder whose first submission was refused: nothing of it has run."""
    if not submission.run.jobs():
        shutil.rmtree(submission.run.path)


def code_environment() -> dict[str, str]:
    """This process's environment, for a child that runs our code from here."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
