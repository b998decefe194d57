"""What the verbs of launch.py do with runs and jobs."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

from settings import ConfigError
from slurm import control, describe, packing, runs, submission
from slurm.causes import logs
from slurm.config import read_job
from slurm.rundir import RunDir
from slurm.snapshot import code_environment
from slurm.step import CODE, enter
from slurm.submission import Submission
from slurm.sweeps import results
from slurm.watch import status as statuses
from slurm.watch import status_text
from slurm.watch.merged import merged

WATCH_SECONDS = 30.0  # sites forbid to ask Slurm more often, again and again


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
        raise describe.not_here(ready)
    sent, job_id = submission.send(ready)
    print(f"job {job_id} is in the queue; the run {describe.continuation(sent)}\n")
    print(f"  launch.py status {name}\n  launch.py logs {name} -f\n  launch.py stop {name}")
    return 0


def status(args: Namespace) -> int:
    if args.watch and args.json:
        raise ConfigError("--watch --json: a script asks when it wants to know: status --json")
    look_at(lambda: _status_text(args), WATCH_SECONDS if args.watch else None)
    return 0


def look_at(text: Callable[[], str], again: float | None) -> None:
    """Print it; in place of what stood there before, every `again` seconds until Ctrl-C."""
    while True:
        shown = text()  # before the screen is emptied: it takes a while
        afresh = "\033[H\033[2J" * (again is not None and sys.stdout.isatty())
        print(afresh + logs.printable(shown), flush=True)
        if again is None:
            return
        time.sleep(again)


def _status_text(args: Namespace) -> str:
    runs_dir = Path(args.runs_dir)
    sweep = runs.find_sweep(args.words[0], runs_dir) if len(args.words) == 1 else None
    if sweep is not None:
        told = results.of(sweep)
        return json.dumps(told.as_json(), indent=2) if args.json else str(told)
    found = statuses.status([the_run(args)] if args.words else runs.all_runs(runs_dir))
    if args.json:
        return json.dumps([one.as_json() for one in found], indent=2)
    terminal = sys.stdout.isatty()
    as_text = status_text.as_text if args.words else status_text.overview  # a run of a sweep, when it is named, is one
    return as_text(found, shutil.get_terminal_size().columns if terminal else None, colour=terminal)


def show_logs(args: Namespace) -> int:
    run = the_run(args)
    if args.all and args.rank is not None:
        raise ConfigError(f"--all --rank {args.rank}: one of the two")
    if args.json and (args.all or args.follow):
        raise ConfigError("--json is of one rank's last lines: without --all and --follow")
    if args.follow and args.attempt is not None:
        raise ConfigError(f"--follow --attempt {args.attempt}: it follows the newest: one of the two")
    if args.follow:
        logs.follow(run, None if args.all else args.rank or 0, lambda: True)
    elif args.all:
        for line in merged(run, args.attempt or run.newest_epoch()):
            print(logs.printable(line))
    elif args.json:
        print(json.dumps(logs.as_json(run, args.rank, args.attempt), indent=2))
    else:
        print(logs.printable(logs.show(run, args.rank, args.attempt)))
    return 0


def stop(args: Namespace) -> int:
    sweep = runs.find_sweep(args.words[0], Path(args.runs_dir)) if len(args.words) == 1 else None
    print("\n".join(control.stop([the_run(args)] if sweep is None else sweep.runs, "launch.py stop")))
    return 0


def export(args: Namespace) -> int:
    """By the trainer, in the run's own code and Python: here, where no GPU is needed. Raises ConfigError."""
    run = the_run(args)
    words = ["trainer.export", str(run.path), *_given(args, "step", "dtype")]
    return _where_ranks_run(run, words, run.path / "code", [], "run it in a job: {}")


def evaluate(args: Namespace) -> int:
    """By the trainer, here, in the run's Python. By the code of now, since one measure measures all runs. Raises
    ConfigError."""
    run = the_run(args)
    data = [str(Path(args.data).absolute())] if args.data is not None else []  # a job stands in another folder
    flags = [*(f"--data={path}" for path in data), *_given(args, "step", "limit", "labels", "mark", "new_tokens")]
    again = shlex.join(["python", "launch.py", "evaluate", str(run.path), *flags])
    advice = (
        "what is answered stays; run it in a job, which goes on from there: launch.py --nodes 1 --gpus 1 "
        f"--name {run.name}-evaluate -- {again}"
    )
    words = ["trainer.evaluate", str(run.path), *flags, *["--json"] * args.json]
    return _where_ranks_run(run, words, CODE, [str(CODE), *(str(Path(path).parent) for path in data)], advice)


def compare(args: Namespace) -> int:
    """By the trainer, here: it reads what evaluations have written. Raises ConfigError."""
    found = [runs.find_run(word, Path(args.runs_dir)).path for word in args.words]
    if len(set(found)) < 2:
        raise ConfigError("compare takes two runs at least: launch.py compare RUN_A RUN_B")
    words = ["trainer.evaluate.compare", *map(str, found), *_given(args, "data", "blind"), *["--json"] * args.json]
    return subprocess.run([sys.executable, "-P", "-m", *words], env=code_environment(CODE)).returncode


def _given(args: Namespace, *names: str) -> list[str]:
    """Flags for the trainer's own command line."""
    values = {name.replace("_", "-"): getattr(args, name) for name in names}
    return [f"--{name}={value}" for name, value in values.items() if value is not None]


def _where_ranks_run(run: RunDir, words: list[str], code: Path, binds: list[str], killed: str) -> int:
    """A module of this code with its words, by the run's Python. `killed`: what to do where a login node has ended it,
    as it does where a process takes more memory than it grants; {} is the whole command. Raises ConfigError."""
    if not run.own:
        raise ConfigError(f"{run.path} belongs to another user, and what it names would run as you: --fork {run.path}")
    job = read_job(run.path)
    if job.command is not None:
        raise ConfigError(f"{run.name} runs a command of its own: what that has made is no checkpoint of the trainer")
    argv = [*enter(job.rank_command, run.path, [*job.binds, *binds]), job.python, "-P", "-m", *words]
    verb = words[0].removeprefix("trainer.")
    try:
        ended = subprocess.run(argv, env=code_environment(code)).returncode
    except FileNotFoundError:
        raise ConfigError(f"there is no {argv[0]} here: {verb} where the ranks run: {shlex.join(argv)}") from None
    if ended < 0:
        advice = killed.format(shlex.join(argv))
        print(f"outlast: signal {-ended} has ended {verb}: {advice}", file=sys.stderr)
    return ended if ended >= 0 else 128 - ended


def report(args: Namespace) -> int:
    """By the trainer, in a process of its own: it needs numpy, which nothing else here does."""
    forms = [f"--{form}" for form in ("png", "markdown", "wandb", "json") if getattr(args, form)]
    argv = [sys.executable, "-P", "-m", "trainer.report", str(the_run(args).path), *forms]
    return subprocess.run(argv, env=code_environment(Path(__file__).parent.parent)).returncode


def prepare(config: str, args: Namespace, archive: Path | None) -> int:
    """A recipe's data, by the trainer, where the runs of this folder look for it, and the environment that its ranks
    run in. `config`: the text of config.yaml."""
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
        environ = code_environment(CODE)
        code = subprocess.run([sys.executable, "-P", "-m", *work], env=environ).returncode
        if code or archive is None or args.suggest_tokens is not None:
            return code
        if not args.check:
            print(packing.pack(archive), flush=True)
        return packing.prove(archive, ["-P", "-m", "trainer.prepare", str(path), "--check"], environ)


READING: dict[str, Callable[[Namespace], int]] = {
    "status": status,
    "logs": show_logs,
    "stop": stop,
    "export": export,
    "evaluate": evaluate,
    "compare": compare,
    "report": report,
}
