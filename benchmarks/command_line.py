"""How long a person waits for the command line, and what it asks of memory and file systems, beside its peers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from statistics import median

from benchmarks import machine, peers, processes
from benchmarks.processes import Command, Import, Unable, failure, imports, interleaved
from benchmarks.rows import Row

BARE, HELP, DRY_RUN = "bare Python", "--help", "dry run"
LAUNCH: Command = [sys.executable, str(peers.ROOT / "launch.py")]
RECIPE = str(peers.ROOT / "recipes" / "demo.yaml")

OURS: dict[str, Command] = {
    BARE: [sys.executable, "-c", "pass"],  # in the same environment, so with the hooks of its site packages
    HELP: [*LAUNCH, "--help"],
    DRY_RUN: [*LAUNCH, "--dry-run", "--nodes", "2", "--gpus", "8", "--cluster", "generic", RECIPE],
}

# Fills in a text and checks nothing: the floor of what a launcher built on submitit takes.
SBATCH_TEXT = """
from submitit.slurm.slurm import _make_sbatch_string as text
print(text("python train.py", folder="logs", nodes=2, ntasks_per_node=8, gpus_per_node=8, time=60))
"""

THEIRS: dict[str, Command] = {
    "torchx run --help": ["torchx", "run", "--help"],
    "accelerate launch --help": ["accelerate", "launch", "--help"],
    "torchrun --help": ["torchrun", "--help"],
    "torchx run --dryrun": ["torchx", "run", "--dryrun", "-s", "slurm", "dist.ddp", "-j", "2x8", "--script", "x.py"],
    "submitit's sbatch text": ["python", "-c", SBATCH_TEXT],
}

# Whom each is measured with, and how many times faster it has to be.
RACES: dict[str, dict[str, float]] = {
    HELP: {"torchx run --help": 1, "accelerate launch --help": 20, "torchrun --help": 1},
    DRY_RUN: {"torchx run --dryrun": 2.5, "submitit's sbatch text": 1},
}
OVER_BARE = {HELP: 60, DRY_RUN: 200}
NOT_LOADED: dict[str, set[str]] = {
    HELP: {"msgspec", "yaml", "torch", "transformers", "submitit"},
    DRY_RUN: {"torch", "transformers", "submitit"},
}


@dataclass(frozen=True)
class Metric:
    """One figure of every command that runs here; less is better."""

    name: str
    unit: str
    figures: Mapping[str, float]
    most: Mapping[str, int]
    over_bare: bool = False
    """`most` counts from what a bare Python takes."""
    raced: bool = True
    """Compared with the peers."""
    missing: str = ""
    """Why there are no figures."""

    def goal(self, what: str) -> str:
        over = " over bare Python" if self.over_bare else ""
        return f"at most {self.most[what]} {self.unit}{over}" if what in self.most else ""

    def met(self, what: str) -> bool | None:
        bare = self.figures[BARE] if self.over_bare else 0
        return self.figures[what] - bare <= self.most[what] if what in self.most else None


def measure(quick: bool) -> list[Row]:
    missing_peers = peers.install()
    theirs = {name: [str(peers.BIN / program), *words] for name, (program, *words) in THEIRS.items()}
    failed = {name: reason for name, command in {**OURS, **theirs}.items() if (reason := failure(command))}
    if ours := [name for name in OURS if name in failed]:
        raise Unable(f"{ours[0]}: {failed[ours[0]]}")
    reasons = {name: _reason(name, missing_peers) or reason for name, reason in failed.items()}
    running = {name: command for name, command in {**OURS, **theirs}.items() if name not in failed}
    metrics = _metrics(running, rounds=7 if quick else 31)
    return [row for what in (HELP, DRY_RUN) for row in _rows(what, metrics, reasons)]


def _metrics(commands: Mapping[str, Command], rounds: int) -> list[Metric]:
    samples = interleaved(commands, rounds)

    def each(figure: Callable[[Command], float]) -> dict[str, float]:
        return {name: figure(command) for name, command in commands.items()}

    wall = {name: median(one.wall for one in taken) for name, taken in samples.items()}
    cpu = {name: median(one.cpu for one in taken) for name, taken in samples.items()}
    untraced = processes.cannot_trace()
    calls = {} if untraced else each(processes.file_calls)
    return [
        Metric("time", "ms", wall, OVER_BARE, over_bare=True),
        Metric("processor time", "ms", cpu, OVER_BARE, over_bare=True, raced=False),  # what a neighbour changes least
        Metric("file-system calls", "calls", calls, {HELP: 600}, missing=untraced or ""),
        Metric("peak memory", "MB", each(processes.peak_memory), {HELP: 16, DRY_RUN: 30}),
    ]


def _reason(command: str, missing_peers: Mapping[str, str]) -> str:
    """Why its package could not be installed: torchrun belongs to torch, all others carry their package's name."""
    return next((why for package, why in missing_peers.items() if command.startswith(package)), "")


def _rows(what: str, metrics: list[Metric], reasons: Mapping[str, str]) -> Iterator[Row]:
    loaded = imports(OURS[what])
    profile = _where_time_goes(loaded)
    for metric in metrics:
        name, unit, figures = f"{what}, {metric.name}", metric.unit, metric.figures
        if not figures:
            yield Row(name, unit, goal=metric.goal(what) or "to be measured", cause=metric.missing)
            continue
        bare = Row(name, unit, figures[what], limit_name=BARE, limit=figures[BARE], cause=profile)
        yield replace(bare, goal=metric.goal(what), met=metric.met(what))
        for peer, times in RACES[what].items() if metric.raced else ():
            raced = Row(name, unit, figures[what], peer, figures.get(peer), cause=reasons.get(peer, profile))
            yield raced.at_least(times if metric.name == "time" else 1)
    wrong = sorted({one.module for one in loaded} & NOT_LOADED[what])
    goal = f"none of {', '.join(sorted(NOT_LOADED[what]))}"
    yield Row(f"{what}, heavy modules", "", len(wrong), goal=goal, met=not wrong, cause=f"loads {', '.join(wrong)}")


def _where_time_goes(loaded: list[Import]) -> str:
    """The script's own imports that cost most, each with what it imports in turn."""
    costly = sorted((one for one in loaded if one.depth == 0), key=lambda one: -one.ms)[:4]
    listed = ", ".join(f"{one.module} {one.ms:.0f} ms" for one in costly)
    return f"{len(loaded)} modules are imported: {listed}, ... (python -X importtime at load {machine.load()})"
