#!/usr/bin/env python3
"""Outlast: LLM full fine-tuning on Slurm that outlasts its walltime.

    python launch.py --nodes 2 --gpus 8 sft.yaml optim.lr=2e-5

Parses, checks and dispatches; what the verbs do lives in slurm/ (jobs), trainer/ (training) and envs/ (places). What a
verb needs is imported when it runs: `--help` costs the standard library alone.
"""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from typing import TYPE_CHECKING, Any, NamedTuple

from flags import THE_DAY, TYPED, VERBS, parse, parser

if TYPE_CHECKING:
    from pathlib import Path

    from slurm.config import JobConfig
    from slurm.doctor.command import Told
    from slurm.rundir import RunDir
    from slurm.sites.cluster import Cluster
    from slurm.submission import Submission
    from slurm.sweeps.grid import Combination


def submit(args: Namespace, job: dict[str, Any], command: list[str] | None) -> int:
    from slurm import describe, proposed, submission
    from slurm.sites import run_root

    if proposed.may_be_planned(ready := resolve(args, job, command)):
        from trainer.plan import report  # 50 ms

        ready = proposed.planned(ready, report.check, args)
    if args.dry_run:
        return describe.show(ready, args.json)
    from slurm import verbs  # what a dry run needs none of takes as long to import as what it needs

    if not (args.no_submit or args.here):
        submission.rehearse(ready)
    run_root.link(args.runs_dir, ready.run.path.parent)
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


def resume(args: Namespace, job: dict[str, Any]) -> int:
    from slurm import control, describe, progress, submission, verbs
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
        return describe.show(ready, args.json)
    if not args.here:
        submission.rehearse(ready)
    submission.rewrite(ready, args.update_code)
    run.lift_end()
    print(f"{run.name} goes on from step {progress.reached(run)}")
    return verbs.start(ready, args.here)


def sweep(args: Namespace, job: dict[str, Any]) -> int:
    from slurm import proposed
    from slurm.sites import run_root
    from slurm.sweeps import grid, sweep_verb
    from slurm.sweeps import sweep as sweeps
    from trainer import recipe as recipes

    axes, others = grid.axes([recipes.spelled(word) for word in args.words if "=" in word])
    args.words = [*(word for word in args.words if "=" not in word), *others]
    asked = the_job(args, job, None)
    runs = run_root.chosen(args.runs_dir, asked.where.profile)
    folder = sweeps.opened(runs, asked.job.name if "name" in job else f"{asked.job.name}-sweep")
    asked = asked._replace(tree=asked.where.with_cache(asked.tree, default=recipes.own_cache(folder.path.parent)))

    def check(run: RunDir, one: Combination) -> Submission:
        ready = trained(asked, run, [*asked.words, *one.words])
        if run.path.exists():
            recipes.check_same(run.path, str(ready.config_text))
        return ready

    plan = sweeps.planned(folder, asked.job, asked.where, grid.combinations(axes), args.parallel, check)
    if plan.ready and proposed.may_be_planned(plan.ready[0]):
        from trainer.plan import report  # 50 ms

        plan = sweeps.with_limits(plan, [proposed.planned(one, report.check, args) for one in plan.ready])
    if args.dry_run:
        return sweep_verb.show(plan, args.json)
    run_root.link(args.runs_dir, runs)
    return sweep_verb.start(plan)


def drill(args: Namespace, job: dict[str, Any]) -> int:
    from envs.drill.drill import rehearse

    tree, spoken, _ = spoken_tree(args)
    return rehearse(tree, {**job, **spoken}, args)


def plan(args: Namespace, job: dict[str, Any]) -> int:
    from slurm.sites import cluster
    from trainer import recipe
    from trainer.plan import command

    def read() -> command.Asked:
        tree, spoken, source = spoken_tree(args)
        where = cluster.find(args.cluster, dry_run=True)
        site = where.profile
        known = {"gpus_per_node": site.gpus_per_node} if site.gpus_per_node else {}
        tree, _ = recipe.translated({**where.with_cache(tree), "job": {**known, **tree.get("job", {})}})
        return command.Asked(tree, spoken, source, site.gpu, site.billing.counted if site.billing else None)

    return command.run(read, job, args)


def prepare(args: Namespace, job: dict[str, Any]) -> int:
    from slurm import verbs
    from slurm.config import archive_of
    from slurm.sites import cluster, run_root
    from trainer import recipe as recipes

    tree, spoken, source = spoken_tree(args)
    where = cluster.find(args.cluster)
    tree = where.with_cache(tree)
    layout = {"nodes": 1, "gpus_per_node": 1, **tree.pop("job"), **spoken}
    runs = run_root.chosen(args.runs_dir, where.profile)
    run_root.link(args.runs_dir, runs)
    run_dir = (runs / tree["name"]).resolve()
    ready = recipes.checked(tree, run_dir, layout["nodes"] * layout["gpus_per_node"], source)
    return verbs.prepare(ready.text, args, archive_of({**where.profile.job, **layout}, source))


def doctor(args: Namespace, job: dict[str, Any]) -> int:
    from slurm import control
    from slurm.doctor import command

    if args.here:
        job = control.fit_allocation(job)
    return command.run(lambda cluster: told(args, job, cluster), checked, args, nodes=args.here or "nodes" in job)


def told(args: Namespace, job: dict[str, Any], cluster: Cluster) -> Told:
    """What a doctor looks at; without a recipe the site alone."""
    from slurm import submission
    from slurm.doctor.command import Told

    named = any("=" not in word for word in args.words) or path_of("recipe.yaml").exists()
    if named:
        tree, spoken, source = spoken_tree(args)
    else:
        spoken, _ = submission.job_words(args.words)
        tree, source = {"name": "doctor", "job": {}}, TYPED
    layers = [({"name": tree["name"]}, source), (tree.pop("job"), source), (job, TYPED), (spoken, TYPED)]
    return Told(cluster.with_cache(tree), layers, source)


def checked(tree: dict[str, Any], run_dir: Path, ranks: int, source: str) -> tuple[str, float | None]:
    """The resolved config, and the bytes of one of its checkpoints. Raises ConfigError."""
    from trainer import recipe as recipes
    from trainer.plan import report

    text = recipes.checked(tree, run_dir, ranks, source).text
    return text, report.checkpoint_size(text)


STARTING = {"resume": resume, "sweep": sweep, "drill": drill, "plan": plan, "prepare": prepare, "doctor": doctor}


# --- from words to a checked submission -----------------------------------------------------------------


class Asked(NamedTuple):
    """What a user's words come to, before a run has its name."""

    tree: dict[str, Any]
    source: str
    """What to call the recipe in errors."""
    words: list[str]
    """Those that are laid on the recipe."""
    job: JobConfig
    where: Cluster
    checkpoint: Path | None


def resolve(args: Namespace, job: dict[str, Any], command: list[str] | None) -> Submission:
    """Everything checked before anything is written. Raises ConfigError with one line."""
    from slurm import submission
    from slurm.rundir import RunDir
    from slurm.sites import cluster as clusters
    from slurm.sites import run_root

    asked = the_job(args, job, command)
    settings = clusters.with_continuation(asked.job, asked.where)
    runs = run_root.chosen(args.runs_dir, asked.where.profile)
    settings = submission.name_run(settings, runs, named="name" in job)
    run = RunDir((runs / settings.name).resolve())
    if command:
        settings = submission.placed(settings, run, asked.where)
        return submission.with_code(submission.Submission(settings, asked.where, run, None))
    return trained(asked._replace(job=settings), run, asked.words)


def the_job(args: Namespace, job: dict[str, Any], command: list[str] | None) -> Asked:
    """The recipe, and the job of recipe, flags and words, checked against the cluster. Raises ConfigError."""
    from slurm import submission
    from slurm.sites import cluster as clusters

    checkpoint = forked(args) if args.fork is not None else None
    tree, source = the_recipe(args, command, checkpoint)
    spoken, training = submission.job_words([word for word in args.words if "=" in word])
    where = clusters.find(args.cluster, dry_run=args.dry_run)
    if args.here:
        from slurm import control

        job = control.fit_allocation(job)
    layers = [({"name": tree["name"]}, source), (tree.pop("job"), source), (job, TYPED)]
    layers += [(spoken, TYPED), ({"command": command} if command else {}, TYPED)]
    return Asked(tree, source, training, submission.asked_job(layers, where), where, checkpoint)


def trained(asked: Asked, run: RunDir, words: list[str]) -> Submission:
    """A run of the recipe with these words laid on it. Raises ConfigError."""
    from slurm import submission
    from trainer import recipe as recipes

    job = submission.placed(asked.job, run, asked.where)
    tree = asked.where.with_cache(recipes.overridden(asked.tree, words))
    recipes.check_no_fork(tree, asked.source)
    fork = {"fork": str(submission.fork_copy(run, asked.checkpoint))} if asked.checkpoint else {}
    tree = {**tree, "name": run.name, **fork}
    config = recipes.checked(tree, run.path, job.world_size, asked.source)
    ready = submission.Submission(job, asked.where, run, None, fork=asked.checkpoint)
    return submission.with_config(ready, config.text, config.batch, config.folders)


def path_of(text: str) -> Path:
    from pathlib import Path  # `--help` does without

    return Path(text)


def the_recipe(args: Namespace, command: list[str] | None, checkpoint: Path | None) -> tuple[dict[str, Any], str]:
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


def spoken_tree(args: Namespace) -> tuple[dict[str, Any], dict[str, Any], str]:
    """The recipe's tree with the words laid on it, those of the job, and what to call it in errors."""
    from slurm import submission
    from trainer import recipe as recipes

    tree, source = the_recipe(args, None, None)
    spoken, training = submission.job_words([word for word in args.words if "=" in word])
    submission.check_fields(tree["job"], source)
    submission.check_fields(spoken, TYPED)
    return recipes.overridden(tree, training), spoken, source


def forked(args: Namespace) -> Path:
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
    except ModuleNotFoundError as error:
        own = os.path.join(os.path.dirname(os.path.abspath(__file__)), (error.name or "launch").split(".")[0])
        if os.path.exists(own) or os.path.exists(f"{own}.py"):
            raise
        print(
            f"outlast: {sys.executable} has no {error.name}: source .venv/bin/activate, or make setup", file=sys.stderr
        )
        return 78
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
    if verb in STARTING:
        return STARTING[verb](args, job)
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
