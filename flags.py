"""What launch.py is told: its verbs, their flags, and how words become both. The standard library alone."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

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
        "launch.py --nodes 2 --gpus 8 --walltime 24:00:00 sft.yaml optim.lr=2e-5",
    ),
    "status": Verb("[RUN]", "how the runs stand, or one: why, how far, when done, cost", "launch.py status sft --json"),
    "logs": Verb("[RUN]", "the log of the rank that failed first", "launch.py logs sft --follow"),
    "stop": Verb("[RUN]", "save at the next step and end; the run can be resumed", "launch.py stop sft"),
    "resume": Verb("[RUN] [key=value ...]", "a new job for a run that ended", "launch.py resume sft --nodes 4"),
    "sweep": Verb(
        "[RECIPE] key=A,B,C ...",
        "a run for every combination, as one array; said again: what is not done",
        "launch.py sweep sft.yaml optim.lr=1e-5,2e-5,5e-5 seed=1,2,3 --parallel 4",
    ),
    "plan": Verb("[RECIPE] [key=value ...]", "memory, time, cost; what would fit", "launch.py plan sft.yaml --gpus 8"),
    "prepare": Verb("[RECIPE] [key=value ...]", "tokenize as submit does", "launch.py prepare sft.yaml --show 3"),
    "export": Verb("[RUN]", "a Hugging Face folder of a run's checkpoint", "launch.py export sft --step 1200"),
    "evaluate": Verb(
        "[RUN]", "how well a run's model answers held-out prompts", "launch.py evaluate sft --data test.jsonl"
    ),
    "compare": Verb("RUN RUN ...", "runs on the same held-out prompts", "launch.py compare full lora --blind 50"),
    "doctor": Verb(
        "[RECIPE] [key=value ...]",
        "do this site, this environment and this recipe fit together?",
        "launch.py doctor sft.yaml --nodes 2",
    ),
    "report": Verb("[RUN]", "one page: loss, time, cost, and the proof that nothing was lost", "launch.py report sft"),
    "drill": Verb(
        "[RECIPE] [key=value ...]",
        "a small copy of the recipe through time limit, preemption, kill, node loss and cancel",
        "launch.py drill sft.yaml",
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
_SCORES = ("evaluate", "compare")
_COMMAND = ("submit", "resume")
_START = (*_COMMAND, "sweep")
_JOB = (*_START, "drill", "doctor")

JOB_FLAGS = [  # the job's fields, so that precedence is one merge of layers
    Flag("-N --nodes", "nodes", int, "number of nodes", (*_JOB, "plan")),
    Flag("--gpus --gpus-per-node", "gpus_per_node", int, "GPUs on EACH node; default: a full node", (*_JOB, "plan")),
    Flag("-t --walltime --time", "walltime", str, "time limit of one job, [D-]HH:MM:SS; the run outlasts it", _JOB),
    Flag("--time-min", "time_min", str, "a shorter limit that Slurm may choose, to start earlier", _JOB),
    Flag("-p --partition", "partition", str, "partition", _JOB),
    Flag("-A --account", "account", str, "account", _JOB),
    Flag("-q --qos", "qos", str, "quality of service", _JOB),
    Flag("-J --name", "name", str, "name of the run; default: the recipe's", ("submit", "sweep")),
    Flag("-C --constraint", "constraint", str, "node features", _JOB),
    Flag("--reservation", "reservation", str, "reservation", _JOB),
    Flag("-w --nodelist", "nodelist", str, "only these nodes", _JOB),
    Flag("-x --exclude", "exclude", str, "not these nodes", _JOB),
    Flag("--mem", "mem", str, "memory of a node", _JOB),
    Flag("--mail-user", "mail_user", str, "address for Slurm's mails", _JOB),
    Flag("--mail-type", "mail_type", str, "END,FAIL (default), TIME_LIMIT_80 ...; END: of the last job", _JOB),
    Flag("--launcher", "launcher", str, "srun (default), fork, or an agent: torchrun, deepspeed", _JOB),
    Flag("--continue-by", "continue_by", str, "auto, chain, array, requeue, none", (*_START, "doctor")),
    Flag("--max-attempts", "max_attempts", int, "starts after which the run ends unfinished", _START),
    Flag("--max-gpu-hours", "max_gpu_hours", float, "GPU-hours after which the run ends unfinished", _START),
    Flag("--stop-signal", "stop_signal", str, "what asks a COMMAND to save: TERM (default), USR1, USR2, INT", _COMMAND),
    Flag(
        "--lead", "lead_seconds", seconds, "how long before the end a COMMAND is asked: SECONDS or HH:MM:SS", _COMMAND
    ),
    Flag("--progress", "progress", str, "a COMMAND's checkpoints, as a GLOB: new ones are progress", _COMMAND),
    Flag("--share", "share", None, "the group may read the run; default: you alone", ("submit", "sweep")),
]
CALL_FLAGS = [
    Flag("--sbatch", "sbatch", str, "any other sbatch option, KEY=VALUE; may be repeated", _JOB),
    Flag("--cluster", "cluster", str, "auto, local, or a profile's name or path", (*_JOB, "prepare", "plan")),
    Flag("--here", "here", None, "in the allocation of this shell (salloc), in the foreground", (*_COMMAND, "doctor")),
    Flag("--parallel", "parallel", int, "of a sweep so many at a time; default: as many as find nodes", ("sweep",)),
    Flag("--fork", "fork", str, "start from a checkpoint of another run: RUN or RUN@STEP", ("submit", "sweep")),
    Flag(
        "--update-code", "update_code", None, "go on with Outlast's own code of now, not of the submission", ("resume",)
    ),
    Flag("--dry-run", "dry_run", None, "print the exact script, and what it costs; do nothing", _START),
    Flag("--no-submit", "no_submit", None, "make the run folder only; sbatch its submission.sh yourself", ("submit",)),
    Flag("-f --follow", "follow", None, "go on printing, over all attempts", ("logs",)),
    Flag("--watch", "watch", None, "again every 30 seconds, with one squeue", ("status",)),
    Flag("--rank", "rank", int, "of this rank", ("logs",)),
    Flag("--attempt", "attempt", int, "of this attempt", ("logs",)),
    Flag("--step", "step", int, "of the checkpoint after this step; default: the newest", ("export", "evaluate")),
    Flag("--dtype", "dtype", str, "float32 or bf16; default: what the run computed in", ("export",)),
    Flag("--data", "data", str, "prompts and answers: a file; compare: an evaluation's name", _SCORES),
    Flag("--limit", "limit", int, "the first so many rows", ("evaluate",)),
    Flag("--labels", "labels", str, "field of the JSON object that an answer begins with; violations", ("evaluate",)),
    Flag("--mark", "mark", str, "what the judged text stands behind; default: Directive:", ("evaluate",)),
    Flag("--new-tokens", "new_tokens", int, "of an answer, at most; default: by the references", ("evaluate",)),
    Flag("--blind", "blind", int, "a folder of so many rows for human raters, without names", ("compare",)),
    Flag("--check", "check", None, "prove that all is there, and nothing would be fetched", ("prepare",)),
    Flag("--show", "show", int, "print so many samples, and what of them is trained on", ("prepare",)),
    Flag("--suggest-tokens", "suggest_tokens", int, "find so many new tokens in the data", ("prepare",)),
    Flag("--gpus-of", "gpus_of", str, "kinds of GPUs: a100-40,h100-80", ("plan",)),
    Flag("--examples", "examples", str, "examples x mean tokens, in place of the data: 6800x2048", ("plan",)),
    Flag("--calibrate", "calibrate", str, "keep what a run, or a file of benchmarks.gpu, has reached", ("plan",)),
    Flag("--table", "table", None, "the founding table, each cell with its arithmetic", ("plan",)),
    Flag("--force", "force", None, "submit also what cannot fit into the GPUs' memory", ("submit", "sweep")),
    Flag("--write-profile", "write_profile", str, "draft a profile of this site, under this name", ("doctor",)),
    Flag("--prove-requeue", "prove_requeue", None, "with --nodes: the job is requeued once", ("doctor",)),
    Flag("--all", "all", None, "logs: all ranks, by time; drill: every fault, in half an hour", ("logs", "drill")),
    Flag("--random", "random", int, "so many random faults in one run", ("drill",)),
    Flag("--seed", "seed", int, "of what is random", ("drill",)),
    Flag("--png", "png", None, "a picture, too", ("report",)),
    Flag("--markdown", "markdown", None, "as Markdown, too", ("report",)),
    Flag("--wandb", "wandb", None, "an offline run of W&B, too, to be sent by wandb sync", ("report",)),
    Flag("--json", "json", None, "as JSON", (*_JOB, "status", "logs", "plan", *_SCORES, "report")),
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
    if "json" in given and verb in ("submit", "resume", "sweep") and "dry_run" not in given:
        raise ConfigError(f"{verb} --json: it is the form of a --dry-run")
    if "prove_requeue" in given and not ("nodes" in given or "here" in given):
        raise ConfigError("--prove-requeue requeues the job that looks at nodes: give --nodes N")
    if verb != "submit" and command:
        raise ConfigError(f"{verb} takes no command, not: {' '.join(command)}")
    job = {flag.field: given[flag.field] for flag in JOB_FLAGS if flag.field in given}
    if "sbatch" in given:
        pairs = (pair.partition("=") for pair in given.pop("sbatch"))
        job["sbatch"] = {key.lstrip("-"): value if equals else True for key, equals, value in pairs}
    switches = {flag.field: False if flag.kind is None else None for flag in CALL_FLAGS}
    return verb, argparse.Namespace(**{**switches, **_DEFAULTS, **given, "words": rest}), job
