"""Finding runs by what people call them: a name, a folder, a job id, or nothing for the newest."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from settings import ConfigError, nearest
from slurm.commands import sent_as
from slurm.rundir import RunDir, Sweep


def all_runs(runs_dir: Path) -> list[RunDir]:
    """Runs of a folder, also those of its sweeps, the one that was started last first."""
    started = {}
    for place in [runs_dir, *(sweep.path for sweep in _sweeps(runs_dir))] if runs_dir.is_dir() else ():
        for folder in os.scandir(place.resolve()):
            with suppress(OSError):  # no run
                path = Path(folder).resolve() if folder.is_symlink() else Path(folder)
                started[path] = os.stat(f"{folder.path}/job.yaml").st_mtime
    return [RunDir(path) for path in sorted(started, key=started.__getitem__, reverse=True)]


def _sweeps(runs_dir: Path) -> list[Sweep]:
    return [Sweep(file.parent.resolve()) for file in runs_dir.glob("*/sweep.json")]


def find_sweep(word: str, runs_dir: Path) -> Sweep | None:
    """The sweep that a person means by its name, its folder or its array's id, if any."""
    if (Path(word) / "sweep.json").exists():
        return Sweep(Path(word).resolve())
    found = sorted(_sweeps(runs_dir), key=lambda one: not one.own)  # a colleague's is known by its name alone
    return next((one for one in found if one.name == word or (one.own and _sent(one, word))), None)


def _sent(sweep: Sweep, job_id: str) -> bool:
    return any(array["job"] == job_id for array in sweep.jobs())


def find_run(word: str | None, runs_dir: Path) -> RunDir:
    """The run that a person means, their own before others'. Raises ConfigError with the nearest name."""
    if word is not None and (Path(word) / "job.yaml").exists():
        return RunDir(Path(word).resolve())
    runs = sorted(all_runs(runs_dir), key=lambda run: not run.own)
    if word is None:
        if not runs or not runs[0].own:
            of = " of yours" * bool(runs)
            raise ConfigError(f"there is no run{of} in {runs_dir}: start one with launch.py --nodes N --gpus M RECIPE")
        return runs[0]
    for run in runs:
        if run.name == word or any(record["job"] in (word, sent_as(word)) for record in run.jobs()):
            return run
    if (sweep := find_sweep(word, runs_dir)) is not None:
        named = sweep.entries()[0]["run"]
        raise ConfigError(
            f"{sweep.name} is a sweep: name one of its runs, as {named}: see launch.py status {sweep.name}"
        )
    near = nearest(word, [run.name for run in runs])
    hint = f"did you mean {near}?" if near else f"looked in {runs_dir}; another folder: --runs-dir DIR"
    raise ConfigError(f"there is no run {word}: {hint}")


def fork_point(text: str) -> tuple[str, int | None]:
    """RUN or RUN@STEP: the run's name and the step. Raises ConfigError."""
    name, at, step = text.rpartition("@") if "@" in text else (text, "", "")
    if at and not step.isdigit():
        raise ConfigError(f"--fork {text}: a step is a number: --fork {name}@1200")
    return name, int(step) if at else None
