"""Turning a forked process into a rank, as if Python had been started anew for it. Standard library only."""

from __future__ import annotations

import importlib.util
import os
import runpy
import shutil
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from slurm.step import CODE


def python_module(argv: tuple[str, ...], foreign: bool) -> tuple[str, list[str]] | None:
    """Module and arguments of `python [-P] -m MODULE ARGS`; None: it must be started as it is written.

    A foreign command's python must be this very one: another has other packages.
    """
    python, *words = argv
    if words[:1] == ["-P"]:
        words = words[1:]
    if words[:1] != ["-m"] or len(words) < 2 or (foreign and shutil.which(python) != sys.executable):
        return None
    return words[1], words[2:]


def preload(module: str) -> None:
    """Import what a package's own `preload` module names, so that the forks share it."""
    spec = importlib.util.find_spec(module)
    if spec is not None and spec.submodule_search_locations and importlib.util.find_spec(f"{module}.preload"):
        importlib.import_module(f"{module}.preload")


def run_module(module: str, args: list[str]) -> None:
    sys.argv = [module, *args]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def run_foreign(argv: tuple[str, ...], module: str, args: list[str]) -> None:
    """A user's module, as if our own had never been imported here: a user's may have the same names."""
    ours = {path.stem for path in CODE.iterdir()}
    for name in [name for name in sys.modules if name.partition(".")[0] in ours and name != "__main__"]:
        del sys.modules[name]
    sys.path[:] = [entry for entry in sys.path if entry != str(CODE)]
    if "-P" not in argv[:2]:
        sys.path.insert(0, os.getcwd())
    run_module(module, args)


def become(work: Callable[[], None], variables: dict[str, str], log: Path) -> NoReturn:
    """Turn this forked process into a rank: its variables, its log, its exit code. Never returns."""

    def rank() -> None:
        os.environ.update(variables)
        redirect(log)
        work()

    end_with(rank)


def end_with(work: Callable[[], None]) -> NoReturn:
    """Do this forked process's work, and leave as Python leaves after it. Never returns."""
    code = 1
    try:
        work()
        code = 0
    except SystemExit as leave:
        if isinstance(leave.code, str):
            print(leave.code, file=sys.stderr)
        code = leave.code if isinstance(leave.code, int) else 0 if leave.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)  # no exit handler of the parent's runs here


def open_log(log: Path) -> int:
    """A file descriptor that appends to a log."""
    return os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)


def redirect(log: Path) -> None:
    """Standard output and error, of this process and of what it starts, to a log of its own."""
    sys.stdout.flush()
    sys.stderr.flush()
    fd = open_log(log)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.close(fd)
