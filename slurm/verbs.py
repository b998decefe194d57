"""What the verbs of launch.py do with runs and jobs."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

from settings import ConfigError
from slurm import control, describe, logs, runs, submission
from slurm import status as statuses
from slurm.config import read_job
from slurm.rundir import RunDir
from slurm.step import enter
from slurm.submission import Submission, code_environment


def the_run(args: Namespace) -> RunDir:
    """The run that the words name; none: the newest."""
    if len(args.words) > 1:
        raise ConfigError(f"one run at a time, not: {' '.join(args.words)}")
    return runs.find_run(args.words[0] if args.words else None, Path(args.runs_dir))


def start(ready: Submission, here: bool) -> int:
    """Queue the run, or train in this shell: without a scheduler, or in its allocation."""
    name = ready.run.name
    where = f"{ready.cluster.profile.name} ({ready.cluster.found_by})"
    print(f"{name}: {ready.job.layout} on {where}", *describe.noted(ready), sep="\n", flush=True)
    if here or ready.job.cluster == "local":
        return control.run_here(ready.run, allocation=here)
    if not ready.cluster.live:
        raise ConfigError(
            f"no Slurm of the cluster {ready.job.cluster} answers here: --dry-run shows what it would get"
        )
    sent, job_id = submission.send(ready)
    print(f"job {job_id} is in the queue; the run {describe.continuation(sent)}\n")
    print(f"  launch.py status {name}\n  launch.py logs {name} -f\n  launch.py stop {name}")
    return 0


def show(ready: Submission, as_json: bool) -> int:
    """A dry run: the script alone on standard output, what it means beside it."""
    if as_json:
        print(json.dumps(describe.as_json(ready), indent=2))
        return 0
    print("\n".join(describe.account(ready)), end="\n\n", file=sys.stderr, flush=True)
    sys.stdout.write(ready.script)
    return 0


def status(args: Namespace) -> int:
    found = statuses.status([the_run(args)] if args.words else runs.all_runs(Path(args.runs_dir)))
    print(json.dumps([one.as_json() for one in found], indent=2) if args.json else statuses.as_text(found))
    return 0


def show_logs(args: Namespace) -> int:
    run = the_run(args)
    if args.follow:
        logs.follow(run, args.rank or 0, lambda: True)
    elif args.json:
        print(json.dumps(logs.as_json(run, args.rank, args.attempt), indent=2))
    else:
        print(logs.show(run, args.rank, args.attempt))
    return 0


def stop(args: Namespace) -> int:
    print(control.stop(the_run(args), "launch.py stop"))
    return 0


def export(args: Namespace) -> int:
    """By the trainer, in the run's own code and Python: here, where no GPU is needed. Raises ConfigError."""
    run = the_run(args)
    job = read_job(run.path)
    if job.command is not None:
        raise ConfigError(f"{run.name} runs a command of its own: what that has made is no checkpoint of the trainer")
    flags = [f"--{name}={value}" for name in ("step", "dtype") if (value := getattr(args, name)) is not None]
    argv = [*enter(job.rank_command, run.path, job.binds), job.python, "-P", "-m", "trainer.export"]
    argv += [str(run.path), *flags]
    try:
        code = subprocess.run(argv, env=code_environment(run.path / "code")).returncode
    except FileNotFoundError:
        raise ConfigError(f"there is no {argv[0]} here: export where the ranks run: {shlex.join(argv)}") from None
    if code < 0:  # as a login node does where a process takes more memory than it grants
        print(f"outlast: signal {-code} has ended the export: run it in a job: {shlex.join(argv)}", file=sys.stderr)
    return code if code >= 0 else 128 - code


def prepare(config: str, args: Namespace) -> int:
    """A recipe's data, by the trainer, where the runs of this folder look for it. `config`: the text of config.yaml."""
    runs_dir = Path(args.runs_dir)
    runs_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".prepare-", dir=runs_dir) as folder:
        path = Path(folder).resolve() / "config.yaml"
        path.write_text(config, encoding="utf-8")
        if args.suggest_tokens is not None:
            work = ["trainer.vocabulary", str(path), f"--suggest={args.suggest_tokens}"]
        else:
            work = ["trainer.prepare", str(path), *(["--check"] if args.check else [])]
            work += [f"--show={args.show}"] if args.show else []
        argv = [sys.executable, "-P", "-m", *work]
        return subprocess.run(argv, env=code_environment(Path(__file__).parent.parent)).returncode


READING: dict[str, Callable[[Namespace], int]] = {
    "status": status,
    "logs": show_logs,
    "stop": stop,
    "export": export,
}
