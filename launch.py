#!/usr/bin/env python3
"""Outlast: LLM full fine-tuning on Slurm that outlasts its walltime.

    python launch.py --nodes 2 --gpus 8 recipes/sft.yaml optim.lr=2e-5

Parses, checks and dispatches; what the verbs do lives in slurm/ (jobs), trainer/ (training) and envs/ (places).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from settings import ConfigError, dump_yaml, nearest, override, read_yaml, to_plain
from slurm import cluster as clusters
from slurm import control, logs, runs, submission
from slurm import status as statuses
from slurm.config import JobConfig
from slurm.errors import SlurmError
from slurm.rundir import RunDir
from slurm.submission import Submission

CONFIG_ERROR = 78

THE_DAY = """\
launch.py --nodes 2 --gpus 8 recipe.yaml     train on 2 nodes x 8 GPUs, through every time limit
launch.py status                             how the runs stand
launch.py logs -f                            follow the newest run
launch.py stop                               save at the next step and end
launch.py resume                             go on with a run that ended
launch.py --help                             every flag; more: docs and README"""

# Flag, its short form, the job's field, type, help. One table, so that precedence is one merge.
JOB_FLAGS: list[tuple[str, str | None, str, Callable[[str], Any], str]] = [
    ("--nodes", "-N", "nodes", int, "number of nodes"),
    ("--gpus", None, "gpus_per_node", int, "GPUs on EACH node; default: a full node"),
    ("--walltime", "-t", "walltime", str, "time limit of one job, [D-]HH:MM:SS; the run goes on through it"),
    ("--partition", "-p", "partition", str, "partition"),
    ("--account", "-A", "account", str, "account"),
    ("--qos", "-q", "qos", str, "quality of service"),
    ("--name", "-J", "name", str, "name of the run; default: the recipe's"),
    ("--constraint", "-C", "constraint", str, "node features"),
    ("--reservation", None, "reservation", str, "reservation"),
    ("--nodelist", "-w", "nodelist", str, "only these nodes"),
    ("--exclude", "-x", "exclude", str, "not these nodes"),
    ("--mem", None, "mem", str, "memory of a node"),
    ("--mail-user", None, "mail_user", str, "address for Slurm's mails"),
    ("--launcher", None, "launcher", str, "srun (default), torchrun, fork"),
    ("--continue-by", None, "continue_by", str, "auto (chain), chain, requeue, none"),
    ("--max-attempts", None, "max_attempts", int, "starts after which the run ends unfinished"),
    ("--max-gpu-hours", None, "max_gpu_hours", float, "GPU-hours after which the run ends unfinished"),
]
ALIASES = {"--gpus": ["--gpus-per-node"], "--walltime": ["--time"]}


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """A mistake in a flag is one line and 78, as every other."""
        raise ConfigError(f"{message}; launch.py --help shows every flag")


def parser() -> Parser:
    out = Parser(
        prog="launch.py",
        description="Train on Slurm through every time limit. Verbs: status, logs, stop, resume, pocket; none: submit.",
        epilog=THE_DAY,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=40, width=110),
        allow_abbrev=False,
    )
    out.add_argument("words", nargs="*", metavar="VERB|RECIPE|key=value", help="a verb, or a recipe and overrides")
    for flag, short, field, kind, text in JOB_FLAGS:
        names = [*([short] if short else []), flag, *ALIASES.get(flag, [])]
        shown = "N" if kind is int else "X" if kind is float else "TEXT"
        out.add_argument(*names, dest=field, type=kind, metavar=shown, help=text, default=argparse.SUPPRESS)
    out.add_argument("--sbatch", action="append", default=[], metavar="KEY=VALUE", help="any other sbatch option")
    out.add_argument("--cluster", default="auto", metavar="NAME", help="auto, local, or a profile's name or path")
    out.add_argument("--runs-dir", type=Path, default=Path("runs"), metavar="DIR", help="folder of the run folders")
    out.add_argument("--dry-run", action="store_true", help="print the exact script and layout, do nothing")
    out.add_argument("--json", action="store_true", help="status: as JSON")
    out.add_argument("-f", "--follow", action="store_true", help="logs: go on printing")
    out.add_argument("--rank", type=int, metavar="N", help="logs: of this rank")
    out.add_argument("--attempt", type=int, metavar="N", help="logs: of this attempt")
    return out


# --- verbs ----------------------------------------------------------------------------------------------


def submit(args: argparse.Namespace, words: list[str], command: list[str] | None) -> int:
    ready = resolve(args, words, command)
    if args.dry_run:
        print(describe(ready))
        return 0
    submission.write_run_dir(ready)
    try:
        if ready.config_text is not None:
            submission.prepare_data(ready)
        return start(ready)
    except (ConfigError, SlurmError):
        submission.discard(ready)
        raise


def start(ready: Submission) -> int:
    """Queue the run, or train here in local mode."""
    name = ready.run.name
    print(f"{name}: {ready.job.layout} on {ready.cluster.profile.name} ({ready.cluster.found_by})", flush=True)
    if ready.job.cluster == "local":
        return control.run_locally(ready.run)
    if not ready.cluster.live:
        raise ConfigError(
            f"no Slurm of the cluster {ready.job.cluster} answers here: --dry-run shows what it would get"
        )
    job_id = submission.send(ready)
    chain = f"; {name}+next will wait behind it to go on" if ready.job.chained else ""
    print(f"job {job_id} is in the queue{chain}\n")
    print(f"  launch.py status {name}\n  launch.py logs {name} -f\n  launch.py stop {name}")
    return 0


def status(args: argparse.Namespace, words: list[str], command: list[str] | None) -> int:
    chosen = [runs.find_run(words[0], args.runs_dir)] if words else runs.all_runs(args.runs_dir)
    found = statuses.status(chosen)
    print(json.dumps([one.as_json() for one in found], indent=2) if args.json else statuses.as_text(found))
    return 0


def show_logs(args: argparse.Namespace, words: list[str], command: list[str] | None) -> int:
    run = runs.find_run(words[0] if words else None, args.runs_dir)
    if args.follow:
        logs.follow(run, args.rank or 0, lambda: True)
    else:
        print(logs.show(run, args.rank, args.attempt))
    return 0


def stop(args: argparse.Namespace, words: list[str], command: list[str] | None) -> int:
    print(control.stop(runs.find_run(words[0] if words else None, args.runs_dir), "launch.py stop"))
    return 0


def resume(args: argparse.Namespace, words: list[str], command: list[str] | None) -> int:
    run = runs.find_run(words[0] if words else None, args.runs_dir)
    ready = control.reopen(run, job_flags(args), args.cluster)
    if args.dry_run:
        print(describe(ready))
        return 0
    control.check_can_go_on(run)
    control.rewrite_job(ready)
    run.lift_end()
    print(f"{run.name} goes on from step {run.committed_step()}")
    return start(ready)


VERBS: dict[str, Callable[[argparse.Namespace, list[str], list[str] | None], int]] = {
    "submit": submit,
    "status": status,
    "logs": show_logs,
    "stop": stop,
    "resume": resume,
}


# --- from words to a checked config ---------------------------------------------------------------------


def resolve(args: argparse.Namespace, words: list[str], command: list[str] | None) -> Submission:
    """Everything checked before anything is written. Raises ConfigError with one line."""
    recipe_path, overrides = recipe_and_overrides(words, command)
    source = str(recipe_path or "command line")
    recipe = read_recipe(recipe_path) if recipe_path else {"name": command_name(command or [])}
    recipe_job: Any = recipe.pop("job", {})
    words_for_job: dict[str, Any] = {}
    for assignment in overrides:
        if re.match(r"job\b", assignment):
            words_for_job = override(words_for_job, assignment)
        else:
            recipe = override(recipe, assignment)
    flags = job_flags(args)
    where = clusters.find(args.cluster, dry_run=args.dry_run)
    spoken_job = words_for_job.get("job", {})
    for job_settings in (recipe_job, spoken_job):
        if not isinstance(job_settings, dict):
            raise ConfigError(f"{source}: job={job_settings}: a mapping of job settings is expected, as nodes: 2")
    layers = [{"name": recipe["name"]}, recipe_job, flags, spoken_job, {"command": command} if command else {}]
    job = submission.resolve_job(layers, where, source)
    job = submission.name_run(job, args.runs_dir, named="name" in flags)
    config_text = None if command else train_config_text(recipe, job, source)
    return Submission(job, where, RunDir((args.runs_dir / job.name).resolve()), config_text)


def recipe_and_overrides(words: list[str], command: list[str] | None) -> tuple[Path | None, list[str]]:
    overrides = [word for word in words if "=" in word]
    recipes = [Path(word) for word in words if "=" not in word]
    if len(recipes) > 1:
        near = nearest(str(recipes[0]), VERBS)
        hint = f": did you mean the verb {near}?" if near else ""
        raise ConfigError(f"one recipe at a time: {' and '.join(map(str, recipes))}{hint}")
    if recipes or command:
        return (recipes[0] if recipes else None), overrides
    here, shipped = Path("recipe.yaml"), submission.ROOT / "recipes" / "demo.yaml"
    chosen = here if here.exists() else shipped
    print(f"no recipe given: taking {os.path.relpath(chosen)}")
    return chosen, overrides


def command_name(command: list[str]) -> str:
    """What a foreign command is called: its script, its module, or its program."""
    module = command[command.index("-m") + 1 : command.index("-m") + 2] if "-m" in command else []
    scripts = [word for word in command if word.endswith((".py", ".sh"))]
    return Path([*scripts, *module, *command, "run"][0]).stem


def read_recipe(path: Path) -> dict[str, Any]:
    """A recipe's tree; file names in it count from its own folder."""
    from trainer.config import absolute_paths

    if not path.exists() and not path.suffix and nearest(path.name, VERBS):
        raise ConfigError(f"there is no verb and no recipe {path}: did you mean {nearest(path.name, VERBS)}?")
    recipe = read_yaml(path)
    return absolute_paths({"name": path.stem, **recipe}, path.parent.resolve())


def train_config_text(recipe: dict[str, Any], job: JobConfig, source: str) -> str:
    """The trainer's complete config, checked against the layout. Raises ConfigError."""
    from trainer import config as training
    from trainer.plan import batch_layout

    config = training.resolve({**recipe, "name": job.name}, source)
    training.check_files(config, source)
    print(batch_layout(config.train, job.world_size))
    return dump_yaml(to_plain(config))


def job_flags(args: argparse.Namespace) -> dict[str, Any]:
    given = {field: getattr(args, field) for _, _, field, _, _ in JOB_FLAGS if hasattr(args, field)}
    table = {}
    for pair in args.sbatch:
        key, equals, value = pair.partition("=")
        table[key.lstrip("-")] = value if equals else True
    return {**given, **({"sbatch": table} if table else {})}


def describe(ready: Submission) -> str:
    """The dry run: what would be sent, and where it would go."""
    how = "chain (a successor waits in the queue)" if ready.job.chained else ready.job.continue_by
    return "\n".join(
        [
            f"# {ready.job.layout}; launcher {ready.job.launcher}; continues by {how}",
            f"# cluster {ready.cluster.profile.name} ({ready.cluster.found_by}); run folder {ready.run.path}",
            ready.script.rstrip(),
        ]
    )


def main(argv: list[str]) -> int:
    words, command = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, None)
    if not words and command is None:
        print(THE_DAY)
        return 0
    try:
        if words and words[0] == "pocket":
            from envs.pocket import cli

            return cli.main(words[1:])
        use_pocket()
        args = parser().parse_intermixed_args(words)
        if not args.words or args.words[0] not in VERBS:
            return submit(args, args.words, command)
        verb, *rest = args.words
        if verb != "submit" and (len(rest) > 1 or command):
            raise ConfigError(f"{verb} takes one run, not: {' '.join([*rest, *(command or [])])}")
        return VERBS[verb](args, rest, command)
    except ConfigError as error:
        print(f"outlast: {error}", file=sys.stderr)
        return CONFIG_ERROR
    except SlurmError as error:
        print(f"outlast: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # the usual way out of `logs -f`
        return 130
    except BrokenPipeError:  # `launch.py logs | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        print(f"outlast: {error}", file=sys.stderr)
        return 1


def use_pocket() -> None:
    """A running pocket cluster is this machine's Slurm, unless SLURM_CONF says otherwise."""
    if "SLURM_CONF" in os.environ:
        return
    from envs.pocket import find

    running = find()
    if running is not None:
        os.environ.update(running.env())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
