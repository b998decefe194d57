"""Finding runs by what people call them: a name, a folder, a job id, or nothing for the newest."""

from __future__ import annotations

from pathlib import Path

from settings import ConfigError, nearest
from slurm.commands import sent_as
from slurm.rundir import RunDir


def all_runs(runs_dir: Path) -> list[RunDir]:
    """Runs of a folder, the one that was started last first."""
    folders = [path for path in runs_dir.glob("*/") if (path / "job.yaml").exists()] if runs_dir.is_dir() else []
    return [RunDir(path.resolve()) for path in sorted(folders, key=_started, reverse=True)]


def _started(path: Path) -> float:
    return (path / "job.yaml").stat().st_mtime


def find_run(word: str | None, runs_dir: Path) -> RunDir:
    """The run that a person means. Raises ConfigError with the nearest name."""
    runs = all_runs(runs_dir)
    if word is None:
        if not runs:
            raise ConfigError(f"there is no run in {runs_dir}: start one with launch.py --nodes N --gpus M RECIPE")
        return runs[0]
    if (Path(word) / "job.yaml").exists():
        return RunDir(Path(word).resolve())
    for run in runs:
        if run.name == word or any(record["job"] == sent_as(word) for record in run.jobs()):
            return run
    near = nearest(word, [run.name for run in runs])
    hint = f"did you mean {near}?" if near else f"looked in {runs_dir}; another folder: --runs-dir DIR"
    raise ConfigError(f"there is no run {word}: {hint}")


def fork_point(text: str) -> tuple[str, int | None]:
    """RUN or RUN@STEP: the run's name and the step. Raises ConfigError."""
    name, at, step = text.rpartition("@") if "@" in text else (text, "", "")
    if at and not step.isdigit():
        raise ConfigError(f"--fork {text}: a step is a number: --fork {name}@1200")
    return name, int(step) if at else None
