"""What the verbs of launch.py do with runs and jobs."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

from settings import ConfigError
from slurm import control, describe, logs, runs, submission
from slurm import status as statuses
from slurm.rundir import RunDir
from slurm.submission import Submission


def the_run(args: Namespace) -> RunDir:
    """The run that the words name; none: the newest."""
    if len(args.words) > 1:
        raise ConfigError(f"one run at a time, not: {' '.join(args.words)}")
    return runs.find_run(args.words[0] if args.words else None, Path(args.runs_dir))


def start(ready: Submission, here: bool) -> int:
    """Queue the run, or train in this shell: without a scheduler, or in its allocation."""
    name = ready.run.name
    where = f"{ready.cluster.profile.name} ({ready.cluster.found_by})"
    print(f"{name}: {ready.job.layout} on {where}", *filter(None, [ready.batch]), sep="\n", flush=True)
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


READING: dict[str, Callable[[Namespace], int]] = {"status": status, "logs": show_logs, "stop": stop}
