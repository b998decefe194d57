"""Telling people how a run goes, by a webhook or a command of theirs. By a process of its own, since neither may hold
up a run or fail it.

`python -m slurm.notify` reads what to do from its standard input, so that no URL stands in a list of processes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from slurm.config import Event, Notify
from slurm.rundir import RunDir
from slurm.step import fill

WEBHOOK_SECONDS, COMMAND_SECONDS = 5.0, 30.0
LAST_SECONDS = 6.0  # in which the last message may still be on its way when the job ends


class Notifier:
    """One supervisor's messages."""

    def __init__(self, run: RunDir, notify: Notify | None) -> None:
        self._run, self._notify = run, notify
        self._sent: list[subprocess.Popen[bytes]] = []

    def tell(self, event: Event, text: str, **facts: Any) -> None:
        """Send it off; whether it arrives is nothing that we wait for."""
        notify = self._notify
        if notify is None or event not in notify.events:
            return
        message = {
            "text": f"{self._run.name}: {text}",
            "run": self._run.name,
            "event": event,
            "time": time.time(),
            **facts,
        }
        url = os.environ.get(notify.webhook.removeprefix("$")) if notify.webhook else None
        work = {"webhook": url, "command": notify.command, "message": message}
        try:
            argv = [sys.executable, "-P", "-m", "slurm.notify"]
            process = subprocess.Popen(argv, stdin=subprocess.PIPE, start_new_session=True)
            assert process.stdin is not None
            with process.stdin as pipe:
                pipe.write(json.dumps(work).encode())  # less than a pipe holds
            self._sent.append(process)
        except OSError as error:
            print(f"outlast: nobody is told of {event}: {error}", flush=True)

    def finish(self, seconds: float = LAST_SECONDS) -> None:
        """Give what is on its way some time: with the job Slurm ends all of its processes."""
        end = time.monotonic() + seconds
        for process in self._sent:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, end - time.monotonic()))


def deliver(work: Mapping[str, Any]) -> None:
    """By each of the ways; what fails is said in the job's log, without the address."""
    event = work["message"]["event"]
    if work["webhook"] is not None:
        _try(f"the webhook was not told of {event}", lambda: _post(work["webhook"], work["message"]))
    if work["command"]:
        _try(f"the command was not told of {event}", lambda: _run(work["command"], work["message"]))


def _try(said: str, way: Any) -> None:
    try:
        way()
    except Exception as error:  # its text may hold the address
        number = getattr(error, "code", None) or getattr(error, "returncode", None) or getattr(error, "reason", "")
        print(f"outlast: {said}: {type(error).__name__} {number}".rstrip(), flush=True)


def _post(url: str, message: Mapping[str, Any]) -> None:
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(message).encode(), headers)
    with urllib.request.urlopen(request, timeout=WEBHOOK_SECONDS):
        pass


def _run(command: list[str], message: Mapping[str, Any]) -> None:
    """The words with {text}, {event} and the like filled in; the message is its standard input as well."""
    filled = {f"{{{key}}}": str(value).replace("\0", "") for key, value in message.items()}
    argv = [fill(word, filled) for word in command]
    text = json.dumps(message).encode()
    subprocess.run(argv, input=text, timeout=COMMAND_SECONDS, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    deliver(json.loads(sys.stdin.read()))
