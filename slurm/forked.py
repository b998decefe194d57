"""Turning a forked process into a rank, as if Python had been started anew for it. Standard library only."""

from __future__ import annotations

import importlib.util
import os
import runpy
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from slurm.errors import SlurmError


def python_module(argv: tuple[str, ...]) -> tuple[str, list[str]]:
    """Module and arguments of `python ... -m MODULE ARGS`."""
    if "-m" not in argv[1:-1]:
        raise SlurmError("launcher fork runs Python modules (python -m MODULE): for other commands use --launcher srun")
    at = argv.index("-m")
    return argv[at + 1], list(argv[at + 2 :])


def preload(module: str) -> None:
    """Import what a package's own `preload` module names, so that the forks share it."""
    spec = importlib.util.find_spec(module)
    if spec is not None and spec.submodule_search_locations and importlib.util.find_spec(f"{module}.preload"):
        importlib.import_module(f"{module}.preload")


def run_module(module: str, args: list[str]) -> None:
    sys.argv = [module, *args]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def become(work: Callable[[], None], variables: dict[str, str], log: Path) -> NoReturn:
    """Turn this forked process into a rank: its variables, its log, its exit code. Never returns."""
    code = 1
    try:
        os.environ.update(variables)
        redirect(log)
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
