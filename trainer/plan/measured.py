"""The plan beside what a run has measured; and what is kept of it for the next plan. Torch-free.

python -m trainer.plan.measured RUN_DIR [--json]
"""

from __future__ import annotations

import json
import os
import re
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import replace as altered

from settings import ConfigError, read_json
from trainer import config
from trainer.plan import batch_layout, calibrated, layouts
from trainer.plan.calibrated import Line
from trainer.plan.devices import CPU, kind_of
from trainer.plan.model import model_of
from trainer.plan.own import FEW
from trainer.plan.state import Ranks, sent
from trainer.plan.time import mfu_of, offloading
from trainer.records import events, history
from trainer.records.history import History


@dataclass(frozen=True)
class Measured:
    """What the events tell of the attempts that had the newest one's ranks and device."""

    device: str
    """As --gpus-of calls it."""
    nodes: int
    gpus: int
    """Ranks of each node."""
    steps: int
    step: float
    """Median seconds, with the wait for a batch."""
    seconds: float
    """Of all steps."""
    memory: float
    """Bytes: peak of what rank 0 has reserved on its GPU; of its whole process on a CPU."""
    mfu: float | None
    """Median; told only on a GPU that is known."""


def of_run(run_dir: Path) -> Measured:
    """Raises ConfigError where the events do not tell it."""
    told = history.read(run_dir) if (run_dir / events.NAME).is_file() else history.History()
    return of_history(told, run_dir)


def of_history(told: History, run_dir: Path) -> Measured:
    """Raises ConfigError where it does not tell it."""
    begun = [event for event in told.told("resume") if "device" in event]
    if not begun:
        raise ConfigError(f"{run_dir / events.NAME}: no attempt has told its device there: nothing to compare with")
    newest = _ranks(begun[-1])
    epochs = [event["epoch"] for event in begun if _ranks(event) == newest]
    steps = told.kept() & np.isin(told.whole("epoch"), epochs)  # a step that was done again counts once
    if (count := int(steps.sum())) < FEW:
        raise ConfigError(f"{run_dir / events.NAME}: {count} steps on these ranks: fewer than {FEW} say nothing")
    world, local, name = newest
    kind = kind_of(name)
    if kind is None:
        raise ConfigError(f"{run_dir / events.NAME}: the plan does not know the device {name}: nothing to compare with")
    spent = (told.numbers("seconds") + told.numbers("data_wait_seconds"))[steps]
    mfu = told.numbers("mfu")[steps]
    return Measured(
        *(kind, world // local, local, count, float(np.median(spent)), float(spent.sum())),
        float(told.numbers("memory_bytes")[steps].max()),
        None if np.isnan(mfu).all() else float(np.nanmedian(mfu)),
    )


def _ranks(event: dict[str, Any]) -> tuple[int, int, str]:
    return event["world_size"], event["local_world_size"], event["device"]


@dataclass(frozen=True)
class Row:
    what: str
    unit: str
    planned: float
    measured: float | None
    """None: not told."""

    @property
    def error(self) -> float | None:
        """Of the plan."""
        return self.planned / self.measured - 1 if self.measured else None


def compared(run_dir: Path, told: History | None = None) -> tuple[list[Row], str]:
    """The plan of a run's recipe on the ranks that it had, beside what they took; and where the plan's MFU is from.
    `told`: its events, where they were read already. Raises ConfigError."""
    found = of_history(told, run_dir) if told is not None else of_run(run_dir)
    settings = config.read(run_dir / "config.yaml")
    device = calibrated.device(found.device, run_dir.parent)
    plan = layouts.planned(model_of(settings), settings, found.nodes, found.gpus, device, found.steps)
    parts = plan.memory.device
    # Torch's allocator does not count the context; a process on a CPU counts more than tensors.
    size = plan.memory.gpu - parts.get("CUDA", 0.0)
    memory = Row("memory of a rank", "GiB", size / 2**30, found.memory / 2**30 if device.on_gpu else None)
    rows = [
        memory,
        Row("step", "s", plan.time.step, found.step),
        Row(f"{found.steps:,} steps", "h", plan.time.hours, found.seconds / 3600),
    ]
    return [*rows, *([Row("MFU", "%", 100 * plan.time.mfu, 100 * found.mfu)] if found.mfu else [])], plan.time.source


def as_text(rows: list[Row], source: str) -> str:
    """A table."""
    lines = [f"{'':<20}{'planned':>12}{'measured':>12}{'':>5}{'error':>9}"]
    for row in rows:
        measured = "" if row.measured is None else f"{row.measured:.4g}"
        error = "" if row.error is None else f"{row.error:+.1%}"
        lines.append(f"{row.what:<20}{row.planned:>12.4g}{measured:>12} {row.unit:<4}{error:>9}")
    return "\n".join([*lines, f"the plan's MFU: {source}"])


# --- kept for the next plan -------------------------------------------------------------------------------


def calibrate(word: str, runs: Path) -> str:
    """Keep what a run (its name or folder) or a file of benchmarks.gpu has reached. Returns what is said.
    Raises ConfigError."""
    path = next((path for path in (Path(word), runs / word) if path.exists()), None)
    if path is None:
        raise ConfigError(f"--calibrate {word}: there is no such file, and no such run in {runs}")
    kind, lines = _of_run(path) if path.is_dir() else _of_benchmark(path)
    memory = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) if kind == CPU else None
    calibrated.keep(runs, kind, lines, memory)
    reached = ", ".join(f"{line.mfu:.1%} for {line.billions:.3g}B" for line in lines)
    return f"{runs / calibrated.NAME}: {kind} reaches {reached}: plans with --runs-dir {runs} take it from now on"


def _of_run(run_dir: Path) -> tuple[str, list[Line]]:
    found = of_run(run_dir)
    settings = config.read(run_dir / "config.yaml")
    model, layout = model_of(settings), batch_layout(settings.train, found.nodes * found.gpus)
    mfu = mfu_of(found.step, model, settings, layout, found.gpus, calibrated.plain(found.device))
    if mfu is None:
        raise ConfigError(f"--calibrate {run_dir}: its offload waits less than the plan assumes: take a run without")
    source = f"{found.steps:,} steps of the run {run_dir.resolve().name}"
    line = Line(model.active / 1e9, float(f"{mfu:.4g}"), source, ranks := layout.data_parallel_size)
    if ranks > 1:
        computing = found.step - offloading(model, settings, layout, found.gpus)
        traffic = round(sent(model, settings, Ranks.of(layout, found.gpus)))
        line = altered(line, step=float(f"{computing:.4g}"), sent=traffic)
    return found.device, [line]


def _of_benchmark(file: Path) -> tuple[str, list[Line]]:
    record = read_json(file)
    try:
        name, full = str(record["device"]["name"]), record["mode"] == "full"
        rows = [row for row in record["rows"] if row["row"] == "B1" and row["name"].endswith(": MFU")]
        made = [(re.match(r"([\d.]+)B ", row["name"]), row["figure"], str(row.get("note", ""))) for row in rows]
    except (KeyError, TypeError) as error:
        raise ConfigError(f"--calibrate {file}: no record of benchmarks.gpu: {error} is missing") from None
    plain = [(found[1], mfu) for found, mfu, note in made if found and mfu and "checkpointing False" in note]
    kind = kind_of(name)
    if kind is None or not full or not plain:
        what = "a reduced run measures nothing" if not full else f"it has no MFU of {name}"
        raise ConfigError(f"--calibrate {file}: {what}: run python -m benchmarks.gpu --only B1 on the GPU")
    best = {size: max(mfu for other, mfu in plain if other == size) for size, _ in plain}
    return kind, [Line(float(size), mfu, f"{file.name}, {size}B", 1) for size, mfu in best.items()]


def main(arguments: list[str]) -> int:
    """0, or 78: there is nothing to compare."""
    folders = [word for word in arguments if word != "--json"]
    if len(folders) != 1:
        print("usage: python -m trainer.plan.measured RUN_DIR [--json]", file=sys.stderr)
        return ConfigError.exit_code
    try:
        rows, source = compared(Path(folders[0]).resolve())
    except ConfigError as error:
        print(f"outlast: {error}", file=sys.stderr)
        return error.exit_code
    plain = {"rows": [{**asdict(row), "error": row.error} for row in rows], "mfu_source": source}
    print(json.dumps(plain, indent=2) if "--json" in arguments else as_text(rows, source))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
