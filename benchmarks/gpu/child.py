"""A part of the benchmark in a process of its own: what it fills, breaks or never ends goes with it.

Forked, so that what all parts import is imported once; the parent never touches a device, which no child could then
use. A part tells what it has found as it finds it: what was told stands, whatever becomes of the process.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_FORK = multiprocessing.get_context("fork")
_PR_SET_PDEATHSIG = 1
Tell = Callable[[Any], None]
_inside = False  # this process is a part already


class Broken(Exception):
    """A part that did not come to its end; the message is one line."""


def told(work: Callable[[Tell], None], until: float, log: Path) -> Iterator[Any]:
    """What `work` tells, until it ends or the clock (`time.monotonic`) says `until`. Raises Broken.

    Its output goes to `log`.
    """
    receiver, sender = _FORK.Pipe(duplex=False)
    process = _FORK.Process(target=_run, args=(work, sender, log))
    process.start()
    sender.close()
    try:
        while True:
            if not receiver.poll(max(0.0, until - time.monotonic())):
                raise Broken("did not end within its time")
            try:
                kind, value = receiver.recv()
            except EOFError:
                process.join()
                raise Broken(f"its process ended by {_cause(process.exitcode)}") from None
            if kind == "done":
                return
            if kind == "failed":
                raise Broken(value)
            yield value
    finally:
        _end(process)


def _run(work: Callable[[Tell], None], sender: Any, log: Path) -> None:
    global _inside
    if not _inside:
        os.setpgid(0, 0)  # what it starts ends with it
    _inside = True
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # and it with its parent, whatever ends that
    with open(log, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        work(lambda value: sender.send(("told", value)))
    except BaseException as error:
        import traceback

        traceback.print_exc()
        sender.send(("failed", reason(error)))
    else:
        sender.send(("done", None))
    os._exit(0)  # no destructors of a process group or a device: they may wait for what is gone


def _end(process: Any) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):  # gone, or killed before it had a group
        process.kill()
    process.join()


def _cause(code: int | None) -> str:
    return signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"


def reason(error: BaseException) -> str:
    """One line."""
    text, kind = " ".join(str(error).split()), type(error).__name__
    named = text if text and kind in ("RuntimeError", "Broken", "ConfigError") else f"{kind}: {text}"
    return f"{named[:200]}..." if len(named) > 200 else named
