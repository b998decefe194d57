"""A `python` for tests whose imports are done: `-P -m MODULE ...` becomes a fork of the zygote, in this process's folder
and environment, on its files; all else is the real one.

`write` makes the executable: its two ends speak over a socket, which is one for each call.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from pathlib import Path

from slurm.node.forked import end_with, run_module
from slurm.node.shim import STOP_SIGNALS

CLIENT = """\
#!{python} -SE
import json, os, socket, sys
argv = sys.argv[1:]
if argv[:2] != ["-P", "-m"]:
    os.execv({python!r}, [{python!r}, *argv])
with socket.socket(socket.AF_UNIX) as zygote:
    zygote.connect({address!r})
    request = {{"argv": argv[2:], "folder": os.getcwd(), "variables": dict(os.environ)}}
    socket.send_fds(zygote, [b"."], [0, 1, 2])
    zygote.sendall(json.dumps(request).encode())
    zygote.shutdown(socket.SHUT_WR)
    code = int(zygote.recv(16) or 1)
sys.exit(code if code >= 0 else 128 - code)
"""


def write(path: Path, address: str) -> Path:
    """The executable, for a zygote that listens at this address."""
    path.write_text(CLIENT.format(python=sys.executable, address=address))
    path.chmod(0o755)
    return path


def serve(listener: socket.socket) -> None:
    """One call, by a child of its own, which waits for the end and tells it."""
    connection, _ = listener.accept()
    if os.fork():
        connection.close()
        return
    _, files, _, _ = socket.recv_fds(connection, 1, 3)
    with connection.makefile("rb") as lines:
        request = json.loads(lines.read())
    if not (child := os.fork()):
        end_with(lambda: _run(request, files))
    connection.sendall(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])).encode())
    os._exit(0)


def _run(request: dict, files: list[int]) -> None:
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["variables"])
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    module, *args = request["argv"]
    sys.modules.pop(module, None)  # as in a Python that has imported nothing yet; runpy would warn
    run_module(module, args)
