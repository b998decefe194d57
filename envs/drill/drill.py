"""`launch.py drill`: a small copy of the user's recipe through faults, and a table of what came of them."""

from __future__ import annotations

import json
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from envs.drill.endings import START, cancel, done_in_the_grace, other_layouts, poison, two_starters
from envs.drill.faults import (
    AT_A_SITE,
    BLIND,
    EVALUATION,
    MATRIX,
    PREEMPTION,
    QUICK,
    RANDOM,
    REQUEUED,
    SAVE,
    STEP,
    Fault,
)
from envs.drill.place import Place, Site, patience
from envs.drill.shrink import shrink
from envs.drill.stage import Row, Stage
from envs.drill.watch import Silent, wait_until
from envs.pocket.errors import PocketError
from envs.pocket.life import up
from settings import ConfigError
from slurm.rundir import RunDir
from slurm.sites.profile import is_path, read_profile

NODES, GPUS = 2, 2
"""On the pocket cluster, unless the user says otherwise: four ranks share two cores."""
SPARE = 1
"""Nodes more: a run goes on elsewhere while a lost node's ranks may live on."""
STEPS_A_FAULT = 60
"""Steps that a run has for each of its faults: to a checkpoint, to the moment, to the next attempt's first ones."""
PACE_STEPS = 60
"""Of the run that tells how long a step takes."""


@dataclass(frozen=True)
class Course:
    """One run, and the faults that it goes through."""

    name: str
    faults: Sequence[Fault]
    job: Mapping[str, Any]
    """Settings of its job."""
    to_the_end: bool = False
    """Else it is stopped after its last fault: what was done so far is compared."""

    def steps(self, step_seconds: float) -> int:
        return int(sum(STEPS_A_FAULT + fault.seconds / step_seconds for fault in self.faults)) + STEPS_A_FAULT


@dataclass(frozen=True)
class Programme:
    """What a drill does."""

    courses: Sequence[Course]
    cancels: Sequence[str] = (STEP,)
    """Moments at which a run is cancelled."""
    others: Sequence[Callable[[Stage], Iterator[Row]]] = ()

    def steps(self, step_seconds: float) -> int:
        """Of each run that goes through faults, and of the one that nobody hurts."""
        return max(course.steps(step_seconds) for course in self.courses)


def chain(faults: Sequence[Fault]) -> Course:
    # Every second node fails twice here, and no job could keep away from all of them.
    job = {"partition": "preempt", "continue_by": "chain", "exclude_bad_nodes": False}
    return Course("chain", faults, job, to_the_end=True)


NO_SCONTROL = [
    "mkdir --parents broken && ln --symbolic --force /bin/false broken/scontrol",
    'export PATH="$PWD/broken:$PATH"',
]
"""Lines of a job's script, which starts in the run's folder."""

DAILY = Programme([chain(QUICK)])
SITE = Programme([Course("chain", AT_A_SITE, {"continue_by": "chain"}, to_the_end=True)])
WHOLE = Programme(
    [
        chain(MATRIX),
        Course("requeue", REQUEUED, {"partition": "preempt", "continue_by": "requeue"}),
        Course("nograce", [replace(PREEMPTION, number="F2")], {"partition": "nograce"}),
        Course("cancel", [replace(PREEMPTION, number="F23")], {"partition": "cancel"}),
        Course("array", [BLIND], {"continue_by": "array", "array_jobs": 2, "setup": NO_SCONTROL}),
    ],
    (START, STEP, SAVE, EVALUATION),
    (poison, two_starters, done_in_the_grace, other_layouts),
)


def at_random(count: int, seed: int) -> Programme:
    """So many faults of all kinds that kill ranks, nodes and daemons, or end jobs."""
    return Programme([chain(random.Random(seed).choices(RANDOM, k=count))], cancels=())


@dataclass
class Result:
    rows: list[Row] = field(default_factory=list)
    compared: dict[str, list[str]] = field(default_factory=dict)
    """Of each run that went through faults: what tells it from the one that nobody hurt."""
    steps: int = 0
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        return not any(row.wrong for row in self.rows) and not any(self.compared.values())


def drill(
    recipe: dict[str, Any], programme: Programme, place: Place, folder: Path, seed: int, console: Console
) -> Result:
    """The programme with a small copy of a complete recipe (its `job` section among it).

    Raises ConfigError for a recipe that cannot be made small, Silent when nothing happens any more.
    """
    began = time.monotonic()
    job = recipe["job"]
    result = Result()
    small = shrink(recipe, folder, job["nodes"] * job["gpus_per_node"], PACE_STEPS)
    stage = Stage(place, folder, small, seed, lambda line: console.print(f"  {line}", style="dim"))
    stage.say("pace: how long a step takes")
    result.steps = stage.recipe["train"]["steps"] = programme.steps(stage.pace())
    for rows in acts(stage, programme, result):
        for row in rows:
            result.rows.append(row)
            wrong = escape("".join(f"; {what}" for what in row.wrong))
            console.print(f"  {row.number:<4} {row.injected}: {row.cause}[red]{wrong}[/]")
    result.seconds = time.monotonic() - began
    return result


def acts(stage: Stage, programme: Programme, result: Result) -> Iterator[Iterator[Row]]:
    """The parts of a drill, one after another; each gives a row a fault."""
    hurt = []
    for course in programme.courses:
        hurt.append(stage.start(course.name, job=course.job))
        yield stage.through(hurt[-1], course.faults, course.to_the_end)
    whole = stage.start("whole")
    stage.say("whole: the run that nobody hurts")
    wait_until(lambda: whole.over, "the whole run", patience(stage.place, 3600))
    result.compared.update({run.name: stage.same(run, whole) for run in hurt})
    yield cancel(stage, programme.cancels)
    for act in programme.others:
        yield act(stage)


# --- for people -----------------------------------------------------------------------------------------


def rehearse(recipe: dict[str, Any], job: dict[str, Any], args: Any) -> int:
    """The verb. `recipe`: the user's, with its words laid on it; `job`: what the command line says of the job."""
    console = Console(highlight=False, soft_wrap=True, stderr=args.json)
    if args.cluster == "local":
        raise ConfigError("a drill needs a Slurm: leave out --cluster for the pocket cluster, or name the site's")
    at_home = args.cluster in ("auto", "pocket")
    if not at_home and (args.all or args.random):
        raise ConfigError("--all and --random hurt nodes and daemons: leave them out, or leave out --cluster")
    programme = DAILY if at_home else SITE
    if args.all or args.random:
        programme = WHOLE if args.all else at_random(args.random, args.seed or 0)
    shape = {"nodes": NODES, "gpus_per_node": GPUS} if at_home else {}
    given = {key: value for key, value in recipe["job"].items() if not at_home or key in ("environment", "setup")}
    launcher = {"launcher": "fork"} if at_home else {}  # four ranks on two cores start in 5 s instead of 11
    recipe = {**recipe, "job": {"nodes": 1, "gpus_per_node": 1, **launcher, **given, **shape, **job}}
    place: Place = Site() if at_home else Site(_profile(args.cluster))
    runs = Path(args.runs_dir)
    runs.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="drill-", dir=runs)).resolve()
    pocket = None
    try:
        if at_home:
            nodes = recipe["job"]["nodes"] + SPARE
            place = pocket = up("pocket-drill", nodes, recipe["job"]["gpus_per_node"])
        count = sum(len(course.faults) for course in programme.courses)
        console.print(f"[bold]drill of {recipe['name']}[/]: {count} faults, in {folder}")
        result = drill(recipe, programme, place, folder, args.seed or 0, console)
    except (Silent, PocketError) as error:
        console.print(f"[red]the drill ended:[/] {escape(str(error))}\nits runs: {folder}/runs")
        return 1
    finally:
        if pocket:
            pocket.down()
        elif not at_home:
            _leave(place, folder / "runs", console)
    if args.json:
        print(json.dumps({**asdict(result), "ok": result.ok}, indent=2))
    else:
        show(result, console)
    if result.ok:
        shutil.rmtree(folder)
    else:
        console.print(f"its runs stay: {folder}/runs")
    return 0 if result.ok else 1


def _profile(name: str) -> str:
    """Runs start in another folder than this one. Raises ConfigError where there is no such profile."""
    read_profile(name)
    return str(Path(name).resolve()) if is_path(name) else name


def _leave(place: Place, runs: Path, console: Console) -> None:
    """Nothing of a drill that has ended stays in a site's queue."""
    ours = {str(record["job"]) for path in runs.glob("*/") for record in RunDir(path).jobs()}
    try:
        if left := sorted(ours & set(place.jobs())):
            place.ask("scancel", *left)
    except PocketError as error:
        console.print(f"[red]look at the queue, where jobs {', '.join(sorted(ours))} may be:[/] {escape(str(error))}")


def show(result: Result, console: Console) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("fault", "injected", "at", "found", "went on", "back", "lost", ""):
        table.add_column(name, justify="right" if name in ("at", "back", "lost") else "left")
    for row in result.rows:
        at, lost = ("-" if value is None else str(value) for value in (row.step, row.lost))
        back = "-" if row.back is None else f"{row.back:.0f} s"
        verdict = "[red]no[/]" if row.wrong else "[green]ok[/]"
        table.add_row(row.number, row.injected, at, row.cause, row.went_on, back, lost, verdict)
    console.print(table)
    for row in result.rows:
        for wrong in row.wrong:
            console.print(f"[red]{row.number} {row.injected}:[/] {escape(wrong)}")
    for name, found in result.compared.items():
        if found:
            console.print(f"[red]{name}: not the run that nobody hurt:[/] {escape('; '.join(found))}")
        else:
            console.print(
                f"[green]{name}:[/] bit for bit the run that nobody hurt: losses, gradients, samples, weights"
            )
    again = sum(row.lost or 0 for row in result.rows)
    console.print(f"{len(result.rows)} faults, {again} steps done again, {result.seconds:.0f} s")
