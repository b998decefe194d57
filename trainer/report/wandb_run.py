"""What a run told, as an offline run of Weights & Biases: one id over all attempts, each step once.

It is written after the fact, from events.jsonl. A run that logs to W&B while it trains loses the last 32 KiB of its
file when it is killed (seen with 0.31), which leaves a gap in front of the step from which it is resumed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from durable import write_atomic
from settings import ConfigError, read_json, read_yaml
from trainer import claims
from trainer.records.board import tag
from trainer.report.run import Run

FOLDER = "wandb"
_TOLD = "told.json"
"""Up to which step files of that folder go: the next one follows them."""
_COLUMNS = ("loss", "lr", "grad_norm", "tokens_per_second", "mfu", "data_wait_seconds", "memory_bytes")


def wanted(run: Run) -> bool:
    """By its recipe."""
    config = run.path / "config.yaml"
    return config.is_file() and read_yaml(config).get("wandb") == "offline"


def write(run: Run) -> str | None:
    """RUN_DIR/wandb/offline-run-*, with the steps that no earlier one has. Returns what to type next; None: there is
    nothing new. Raises ConfigError where wandb is not installed."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # it goes over the network
    try:
        import wandb
    except ImportError:
        raise ConfigError("W&B needs the package wandb in this Python: pip install wandb") from None
    note = run.path / FOLDER / _TOLD
    told = int(read_json(note)["step"]) if note.is_file() else 0
    rows = [row for row in steps(run) if row[0] > told]
    if not rows:
        return None
    born = claims.born(run.path)
    quiet = wandb.Settings(silent=True, console="off", disable_git=True, disable_code=True, x_disable_stats=True)
    about: dict[str, Any] = {"id": identity(run.path), "name": run.name, "resume": "allow", "dir": str(run.path)}
    if not os.environ.get("WANDB_PROJECT"):
        about["project"] = "outlast"
    with wandb.init(**about, mode="offline", config=_config(run.path), settings=quiet) as writer:
        folder = Path(writer.dir).parent
        for step, time, values in rows:
            writer.log({**values, "_timestamp": time, "_runtime": time - born}, step=step)
    write_atomic(note, f'{{"step": {rows[-1][0]}}}\n')
    return f"wandb sync {os.path.relpath(folder)}"


def identity(run_dir: Path) -> str:
    """The run's, for ever: its first claim's nonce, which no other run has."""
    return str(claims.read(run_dir, 1).get("nonce", run_dir.name))


def _config(run_dir: Path) -> dict[str, Any]:
    path = run_dir / "config.yaml"
    return dict(read_yaml(path)) if path.is_file() else {}


def steps(run: Run) -> Iterator[tuple[int, float, dict[str, float]]]:
    """Each step that counts, once, with its unix seconds and what was told of it, by the names that TensorBoard has.
    Without the last one of a run that goes on: its evaluation may still come."""
    history, kept = run.history, run.history.kept()
    number, time = history.whole("step")[kept], history.numbers("time")[kept]
    columns = {tag(name): history.numbers(name)[kept] for name in _COLUMNS}
    beside, last = _beside(run), run.step if run.done or run.cancelled else run.step - 1
    _, first = np.unique(number, return_index=True)
    for at in first:
        step = int(number[at])
        if step <= last:
            values = {name: float(column[at]) for name, column in columns.items() if not np.isnan(column[at])}
            yield step, float(time[at]), {**values, **beside.get(step, {})}


def _beside(run: Run) -> dict[int, dict[str, float]]:
    """What evaluations told, by step."""
    found: dict[int, dict[str, float]] = {}
    for event in run.history.in_line("evaluation", "penalty"):
        row = found.setdefault(int(event["step"]), {})
        if event["event"] == "penalty":
            values = {"penalty": event["penalty"]}
        elif losses := event.get("losses"):
            values = {f"evaluation_loss/{name}": one for name, one in losses.items()}
        else:
            values = {"evaluation_loss": event["loss"]}
        row |= {tag(name): float(value) for name, value in values.items() if value is not None}
    return found
