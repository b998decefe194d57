#!/usr/bin/env python3
"""Outlast: LLM full fine-tuning on Slurm that outlasts its walltime.

    python launch.py --nodes 2 --gpus 8 recipes/sft.yaml optim.lr=2e-5

Parses, checks and dispatches; what the verbs do lives in slurm/ (jobs), trainer/ (training) and envs/ (places). What a
verb needs is imported when it runs: `--help` costs the standard library alone.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

if TYPE_CHECKING:
    from pathlib import Path

    from slurm.submission import Submission

THE_DAY = """\
launch.py --nodes 2 --gpus 8 recipe.yaml     train on 2 nodes x 8 GPUs, through every time limit
launch.py status                             how the runs stand
launch.py logs -f                            follow the newest run
launch.py stop                               save at the next step and end
launch.py resume                             go on with a run that ended
launch.py --help                             every flag; launch.py VERB --help: those of one verb"""


class Verb(NamedTuple):
    takes: str
    text: str
    example: str


VERBS = {
    "submit": Verb(
        "[RECIPE] [key=value ...] [-- COMMAND ...]",
        "queue a run; the verb may be left out",
        "launch.py --nodes 2 --gpus 8 --walltime 24:00:00 recipes/sft.yaml optim.lr=2e-5",
    ),
    "status": Verb("[RUN]", "how the runs stand: state, step, loss, attempts", "launch.py status sft --json"),
    "logs": Verb("[RUN]", "the log of the rank that failed first", "launch.py logs sft --follow"),
    "stop": Verb("[RUN]", "save at the next step and end; the run can be resumed", "launch.py stop sft"),
    "resume": Verb("[RUN] [key=value ...]", "a new job for a run that ended", "launch.py resume sft --nodes 4"),
    "plan": Verb("[RECIPE] [key=value ...]", "memory, time, cost; what would fit", "launch.py plan sft.yaml --gpus 8"),
    "prepare": Verb("[RECIPE] [key=value ...]", "tokenize as submit does", "launch.py prepare sft.yaml --show 3"),
    "export": Verb("[RUN]", "a Hugging Face folder of a run's checkpoint", "launch.py export sft --step 1200"),
    "drill": Verb(
        "[RECIPE] [key=value ...]",
        "a small copy of the recipe through time limit, preemption, kill, node loss and cancel",
        "launch.py drill recipes/sft.yaml",
    ),
}


class Flag(NamedTuple):
    names: str
    field: str
    kind: Callable[[str], Any] | None
    """None: a switch."""
    text: str
    verbs: tuple[str, ...]


def seconds(text: str) -> float:
    """`90`, `5:00` or `1:00:00`."""
    return sum((float(part) * 60**power for power, part in enumerate(reversed(text.split(":")))), 0.0)


TYPED = "command line"  # what errors call it, where they else name a file
_START, _JOB = ("submit", "resume"), ("submit", "resume", "drill")

JOB_FLAGS = [  # the job's fields, so that precedence is one merge of layers
    Flag("-N --nodes", "nodes", int, "number of nodes", (*_JOB, "plan")),
    Flag("--gpus --gpus-per-node", "gpus_per_node", int, "GPUs on EACH node; default: a full node", (*_JOB, "plan")),
    Flag("-t --walltime --time", "walltime", str, "time limit of one job, [D-]HH:MM:SS; the run outlasts it", _JOB),
    Flag("--time-min", "time_min", str, "a shorter limit that Slurm may choose, to start earlier", _JOB),
    Flag("-p --partition", "partition", str, "partition", _JOB),
    Flag("-A --account", "account", str, "account", _JOB),
    Flag("-q --qos", "qos", str, "quality of service", _JOB),
    Flag("-J --name", "name", str, "name of the run; default: the recipe's", ("submit",)),
    Flag("-C --constraint", "constraint", str, "node features", _JOB),
    Flag("--reservation", "reservation", str, "reservation", _JOB),
    Flag("-w --nodelist", "nodelist", str, "only these nodes", _JOB),
    Flag("-x --exclude", "exclude", str, "not these nodes", _JOB),
    Flag("--mem", "mem", str, "memory of a node", _JOB),
    Flag("--mail-user", "mail_user", str, "address for Slurm's mails", _JOB),
    Flag("--launcher", "launcher", str, "srun (default), torchrun, deepspeed, fork", _JOB),
    Flag("--continue-by", "continue_by", str, "auto, chain, array, requeue, none", _START),
    Flag("--max-attempts", "max_attempts", int, "starts after which the run ends unfinished", _START),
    Flag("--max-gpu-hours", "max_gpu_hours", float, "GPU-hours after which the run ends unfinished", _START),
    Flag("--stop-signal", "stop_signal", str, "what asks a COMMAND to save: TERM (default), USR1, USR2, INT", _START),
    Flag("--lead", "lead_seconds", seconds, "how long before the end a COMMAND is asked: SECONDS or HH:MM:SS", _START),
    Flag("--progress", "progress", str, "a COMMAND's checkpoints, as a GLOB: new ones are progress", _START),
    Flag("--share", "share", None, "the group may read the run; default: you alone", ("submit",)),
]
CALL_FLAGS = [
    Flag("--sbatch", "sbatch", str, "any other sbatch option, KEY=VALUE; may be repeated", _JOB),
    Flag("--cluster", "cluster", str, "auto, local, or a profile's name or path", (*_JOB, "prepare")),
    Flag("--here", "here", None, "in the allocation of this shell (salloc), in the foreground", _START),
    Flag("--fork", "fork", str, "start from a checkpoint of another run: RUN or RUN@STEP", ("submit",)),
    Flag("--update-code", "update_code", None, "go on with the code of now, not of the submission", ("resume",)),
    Flag("--dry-run", "dry_run", None, "print the exact script, and what it costs; do nothing", _START),
    Flag("--no-submit", "no_submit", None, "make the run folder only; sbatch its submission.sh yourself", ("submit",)),
    Flag("-f --follow", "follow", None, "go on printing, over all attempts", ("logs",)),
    Flag("--rank", "rank", int, "of this rank", ("logs",)),
    Flag("--attempt", "attempt", int, "of this attempt", ("logs",)),
    Flag("--step", "step", int, "of the checkpoint after this step; default: the newest", ("export",)),
    Flag("--dtype", "dtype", str, "float32 or bf16; default: what the run computed in", ("export",)),
    Flag("--check", "check", None, "prove that all is there, and nothing would be fetched", ("prepare",)),
    Flag("--show", "show", int, "print so many samples, and what of them is trained on", ("prepare",)),
    Flag("--suggest-tokens", "suggest_tokens", int, "find so many new tokens in the data", ("prepare",)),
    Flag("--gpus-of", "gpus_of", str, "kinds of GPUs: a100-40,h100-80", ("plan",)),
    Flag("--examples", "examples", str, "examples x mean tokens, in place of the data: 6800x2048", ("plan",)),
    Flag("--calibrate", "calibrate", str, "keep what a run, or a file of benchmarks.gpu, has reached", ("plan",)),
    Flag("--table", "table", None, "the founding table, each cell with its arithmetic", ("plan",)),
    Flag("--force", "force", None, "submit also what cannot fit into the GPUs' memory", ("submit",)),
    Flag("--all", "all", None, "the whole matrix of faults, in half an hour", ("drill",)),
    Flag("--random", "random", int, "so many random faults in one run", ("drill",)),
    Flag("--seed", "seed", int, "of what is random", ("drill",)),
    Flag("--json", "json", None, "as JSON", ("submit", "resume", "status", "logs", "drill", "plan")),
    Flag("--runs-dir", "runs_dir", str, "folder of the run folders; default: runs", tuple(VERBS)),
]
_DEFAULTS: dict[str, Any] = {"cluster": "auto", "runs_dir": "runs"}


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """A mistake in a flag is one line and 78, as every other."""
        from settings import ConfigError, nearest

        wrong = message.removeprefix("unrecognized arguments: ").split("=")[0].split()[0]
        names = [name for flag in JOB_FLAGS + CALL_FLAGS for name in flag.names.split()]
        near = nearest(wrong, names) if message.startswith("unrecognized") else None
        raise ConfigError(f"{message}{f': did you mean {near}?' if near else ''}; launch.py --help shows every flag")


def parser(verb: str | None = None) -> Parser:
    """Of all flags; or of one verb's, for its help."""
    about = VERBS[verb or "submit"]
    out = Parser(
        prog="launch.py",
        usage=f"launch.py {verb or ''}{' ' if verb else ''}{about.takes} [flags]",
        description=about.text if verb else _verbs_text(),
        epilog=f"example: {about.example}",
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=34, width=100),
        allow_abbrev=False,
        add_help=False,
    )
    out.add_argument("words", nargs="*", help=argparse.SUPPRESS)
    for title, flags in (("the job", JOB_FLAGS), ("this call", CALL_FLAGS)):
        group = out.add_argument_group(title)
        for flag in flags:
            if verb is None or verb in flag.verbs:
                group.add_argument(*flag.names.split(), **_options(flag))
    return out


def _verbs_text() -> str:
    lines = ["Train on Slurm through every time limit.", "", *(f"  {name:<10}{VERBS[name].text}" for name in VERBS)]
    return "\n".join([*lines, "  pocket    a real Slurm on this machine, to try things: up, status, down"])


def _options(flag: Flag) -> dict[str, Any]:
    options: dict[str, Any] = {"dest": flag.field, "help": flag.text, "default": argparse.SUPPRESS}
    if flag.kind is None:
        return {**options, "action": "store_true"}
    shown = {int: "N", float: "X"}.get(flag.kind, "KEY=VALUE" if flag.field == "sbatch" else "TEXT")  # type: ignore[call-overload]
    return {**options, "type": flag.kind, "metavar": shown, "action": "append" if flag.field == "sbatch" else "store"}


def parse(words: list[str], command: list[str] | None = None) -> tuple[str, argparse.Namespace, dict[str, Any]]:
    """The verb, the call's flags (args.words: what is no flag and no verb), and the job's. Raises ConfigError."""
    from settings import ConfigError

    given = vars(parser().parse_intermixed_args(words))
    rest: list[str] = given.pop("words")
    verb = rest.pop(0) if rest and rest[0] in VERBS else "submit"
    for flag in JOB_FLAGS + CALL_FLAGS:
        if flag.field in given and verb not in flag.verbs:
            name = next(name for name in flag.names.split() if name.startswith("--"))
            raise ConfigError(f"{verb} takes no {name}: see launch.py {verb} --help")
    if verb != "submit" and command:
        raise ConfigError(f"{verb} takes no command, not: {' '.join(command)}")
    job = {flag.field: given[flag.field] for flag in JOB_FLAGS if flag.field in given}
    if "sbatch" in given:
        pairs = (pair.partition("=") for pair in given.pop("sbatch"))
        job["sbatch"] = {key.lstrip("-"): value if equals else True for key, equals, value in pairs}
    switches = {flag.field: False if flag.kind is None else None for flag in CALL_FLAGS}
    return verb, argparse.Namespace(**{**switches, **_DEFAULTS, **given, "words": rest}), job


# --- verbs ----------------------------------------------------------------------------------------------


def submit(args: argparse.Namespace, job: dict[str, Any], command: list[str] | None) -> int:
    from slurm import proposed, submission, verbs

    if proposed.may_be_planned(ready := resolve(args, job, command)):
        from trainer.plan import report  # 50 ms

        ready = proposed.planned(ready, report.check, args)
    if args.dry_run:
        return verbs.show(ready, args.json)
    if not (args.no_submit or args.here):
        submission.rehearse(ready)
    submission.write_run_dir(ready)
    try:
        if ready.config_text is not None:
            submission.prepare_data(ready)
        if args.no_submit:
            print(f"{ready.run.path} is ready: sbatch {ready.run.script}, or launch.py resume {ready.run.name}")
            return 0
        return verbs.start(ready, args.here)
    except BaseException:  # also Ctrl-C
        submission.discard(ready)
        raise


def resume(args: argparse.Namespace, job: dict[str, Any]) -> int:
    from slurm import control, submission, verbs
    from trainer import recipe as recipes

    spoken, training = submission.job_words([word for word in args.words if "=" in word])
    args.words = [word for word in args.words if "=" not in word]
    run = verbs.the_run(args)
    control.check_can_go_on(run)
    job = control.fit_allocation(job) if args.here else job
    ready = control.reopen(run, {**job, **spoken}, args.cluster, args.dry_run)
    if ready.job.command is None:
        config = recipes.changed(run.path, training, ready.job.world_size)
        ready = submission.with_config(ready, config.text, config.batch, config.folders)
    if args.dry_run:
        return verbs.show(ready, args.json)
    if not args.here:
        submission.rehearse(ready)
    control.rewrite(ready, args.update_code)
    run.lift_end()
    print(f"{run.name} goes on from step {run.committed_step()}")
    return verbs.start(ready, args.here)


def drill(args: argparse.Namespace, job: dict[str, Any]) -> int:
    from envs.drill.drill import rehearse

    tree, spoken, _ = spoken_tree(args)
    return rehearse(tree, {**job, **spoken}, args)


def plan(args: argparse.Namespace, job: dict[str, Any]) -> int:
    from trainer.plan import command

    return command.run(lambda: spoken_tree(args), job, args)


def prepare(args: argparse.Namespace, job: dict[str, Any]) -> int:
    from slurm import cluster, verbs
    from trainer import recipe as recipes

    tree, spoken, source = spoken_tree(args)
    tree = cluster.find(args.cluster).with_cache(tree)
    layout = {"nodes": 1, "gpus_per_node": 1, **tree.pop("job"), **spoken}
    run_dir = (path_of(args.runs_dir) / tree["name"]).resolve()
    return verbs.prepare(recipes.checked(tree, run_dir, layout["nodes"] * layout["gpus_per_node"], source).text, args)


# --- from words to a checked submission -----------------------------------------------------------------


def resolve(args: argparse.Namespace, job: dict[str, Any], command: list[str] | None) -> Submission:
    """Everything checked before anything is written. Raises ConfigError with one line."""
    from slurm import cluster as clusters
    from slurm import control, submission
    from slurm.rundir import RunDir
    from trainer import recipe as recipes

    checkpoint = forked(args) if args.fork is not None else None
    tree, source = the_recipe(args, command, checkpoint)
    spoken, training = submission.job_words([word for word in args.words if "=" in word])
    where = clusters.find(args.cluster, dry_run=args.dry_run)
    job = control.fit_allocation(job) if args.here else job
    layers = [({"name": tree["name"]}, source), (tree.pop("job"), source), (job, TYPED)]
    layers += [(spoken, TYPED), ({"command": command} if command else {}, TYPED)]
    settings = submission.name_run(submission.resolve_job(layers, where), path_of(args.runs_dir), named="name" in job)
    run = RunDir((path_of(args.runs_dir) / settings.name).resolve())
    if command:
        return submission.with_code(submission.Submission(settings, where, run, None), path_of(os.getcwd()))
    fork = {"fork": str(submission.fork_copy(run, checkpoint))} if checkpoint else {}
    tree = {**where.with_cache(recipes.overridden(tree, training)), "name": run.name, **fork}
    config = recipes.checked(tree, run.path, settings.world_size, source)
    ready = submission.Submission(settings, where, run, None, fork=checkpoint)
    return submission.with_config(ready, config.text, config.batch, config.folders)


def path_of(text: str) -> Path:
    from pathlib import Path  # `--help` does without

    return Path(text)


def the_recipe(
    args: argparse.Namespace, command: list[str] | None, checkpoint: Path | None
) -> tuple[dict[str, Any], str]:
    """The recipe's tree with its `name` and `job`, and what to call it in errors."""
    from settings import ConfigError, nearest
    from slurm.submission import command_name
    from trainer import recipe as recipes

    named = [path_of(word) for word in args.words if "=" not in word]
    if len(named) > 1 or (named and not named[0].exists() and not named[0].suffix):
        near = nearest(str(named[0]), VERBS)
        hint = f": did you mean the verb {near}?" if near else ""
        what = "one recipe at a time" if len(named) > 1 else "there is no verb and no recipe"
        raise ConfigError(f"{what}: {' and '.join(map(str, named))}{hint}")
    if not named and command:
        return {"name": command_name(command), "job": {}}, TYPED
    if not named and checkpoint:
        return recipes.forked(checkpoint), str(checkpoint.parent.parent / "config.yaml")
    path = named[0] if named else recipes.default()
    tree = {"job": {}, **recipes.read(path)}
    if command and (others := tree.keys() - {"name", "job"}):
        raise ConfigError(f"{path}: with -- COMMAND only its job section counts: take out {', '.join(sorted(others))}")
    return tree, str(path)


def spoken_tree(args: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any], str]:
    """The recipe's tree with the words laid on it, those of the job, and what to call it in errors."""
    from slurm import submission
    from trainer import recipe as recipes

    tree, source = the_recipe(args, None, None)
    spoken, training = submission.job_words([word for word in args.words if "=" in word])
    return recipes.overridden(tree, training), spoken, source


def forked(args: argparse.Namespace) -> Path:
    """The checkpoint that `--fork RUN[@STEP]` names."""
    from slurm import runs
    from trainer import recipe as recipes

    name, step = runs.fork_point(args.fork)
    return recipes.checkpoint_to_fork(runs.find_run(name, path_of(args.runs_dir)).path, step)


def main(argv: list[str]) -> int:
    words, command = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, None)
    if not words and command is None:
        print(THE_DAY)
        return 0
    try:
        return dispatch(words, command)
    except KeyboardInterrupt:  # the usual way out of `logs -f`
        return 130
    except BrokenPipeError:  # `launch.py logs | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        # A user's mistake and a cluster's failure know their code; our own bugs keep their traceback.
        code = getattr(error, "exit_code", 1 if isinstance(error, OSError) else None)
        if code is None:
            raise
        print(f"outlast: {error}", file=sys.stderr)
        return int(code)


def dispatch(words: list[str], command: list[str] | None) -> int:
    if words and words[0] == "pocket":
        from envs.pocket import cli

        return cli.main(words[1:])
    if {"-h", "--help"}.intersection(words):
        parser(next((word for word in words if word in VERBS), None)).print_help()
        return 0
    verb, args, job = parse(words, command)
    use_pocket()
    if verb == "submit":
        return submit(args, job, command)
    if verb in ("resume", "drill", "plan", "prepare"):
        return {"resume": resume, "drill": drill, "plan": plan, "prepare": prepare}[verb](args, job)
    from slurm import verbs

    return verbs.READING[verb](args)


def use_pocket() -> None:
    """A running pocket cluster is this machine's Slurm, unless SLURM_CONF says otherwise."""
    from envs.pocket.roots import stands

    if "SLURM_CONF" not in os.environ and stands():
        from envs.pocket import find

        os.environ.update(running.env() if (running := find()) is not None else {})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
