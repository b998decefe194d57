"""Imports torch, transformers, deepspeed and the trainer once, then forks a rank for every line on its standard input.

A request is a JSON line {"argv": [module, ...], "variables": {...}, "log": path}; the answers are {"pid": n} and, when a
rank ends, {"pid": n, "code": n}. {"kill": [n, ...]} ends at once those that are still there, which their parent alone
can know. As a launcher does, it starts ranks with the stop signals blocked.

At the socket whose number is its argument it serves tests.quick_python.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path

from slurm.node.forked import become, preload, run_module
from slurm.node.shim import STOP_SIGNALS
from tests import quick_python


def main() -> None:
    preload("trainer")
    with suppress(ImportError):  # else each rank of its engine takes seconds for it
        os.environ["DS_ACCELERATOR"] = "cpu"
        importlib.import_module("deepspeed")
    gc.freeze()
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    listener = socket.socket(fileno=int(sys.argv[1]))
    alive: set[int] = set()
    reading = True
    while reading or alive:
        ready, _, _ = select.select([sys.stdin, listener] if reading else [], [], [], 0.02)
        if listener in ready:
            quick_python.serve(listener)
        if sys.stdin in ready:
            line = sys.stdin.readline()
            reading = bool(line)
            if line:
                serve(json.loads(line), alive)
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                pid, status = ended
                if pid in alive:
                    alive.remove(pid)
                    tell(pid=pid, code=os.waitstatus_to_exitcode(status))


def serve(request: dict, alive: set[int]) -> None:
    if "kill" not in request:
        pid = start(request)
        alive.add(pid)
        tell(pid=pid)
    for pid in alive.intersection(request.get("kill", [])):
        os.kill(pid, signal.SIGKILL)


def start(request: dict) -> int:
    pid = os.fork()
    if pid == 0:
        module, *args = request["argv"]
        become(lambda: run_module(module, args), request["variables"], Path(request["log"]))
    return pid


def tell(**values: int) -> None:
    print(json.dumps(values), flush=True)


if __name__ == "__main__":
    main()
