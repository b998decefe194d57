"""Who is told of starts and ends, and that it never is in the run's way."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from settings import ConfigError
from slurm.config import Notify, make_job
from slurm.rundir import RunDir
from tests.slurm.conftest import Start, causes
from tests.waiting import wait_until


class Hook(HTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.heard: list[dict[str, Any]] = []
        self.status = 200

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/secret-path"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Hook)
        self.server.heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hook]:
    server = Hook()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    monkeypatch.setenv("MY_HOOK", server.url)
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_webhook_and_a_command_are_told(run: RunDir, start: Start, hook: Hook) -> None:
    told = run.path / "told"
    command = ["/bin/sh", "-c", 'echo "$1" >>"$0.words"; cat >>"$0"; echo >>"$0"', str(told), "{event} {step} {text}"]
    program = "import os, sys; sys.exit(0 if os.environ['OUTLAST_ATTEMPT'] == '2' else 75)"
    process = start(program, notify=Notify(webhook="$MY_HOOK", command=command))
    assert process.wait(120) == 0 and causes(run) == ["signal", "done"]
    expected = ["start", "continuation", "done"]
    wait_until(lambda: len(hook.heard) == 3, "the webhook")
    by_time = sorted(hook.heard, key=lambda message: message["time"])
    assert [message["event"] for message in by_time] == expected
    assert by_time[0]["run"] == run.name and by_time[0]["text"].startswith(f"{run.name}: attempt 1 starts at step 0")
    assert {message["attempt"] for message in by_time} == {1, 2} and by_time[2]["text"] == f"{run.name}: done"
    assert sorted(json.loads(line)["event"] for line in told.read_text().splitlines()) == sorted(expected)
    assert "done 0 run's folder: done" in Path(f"{told}.words").read_text().splitlines()
    assert hook.url not in (run.path / "job.yaml").read_text()


@pytest.mark.parametrize(
    ("event", "program", "code"),
    [("no_progress", "import sys; sys.exit('bad')", 93), ("stop", "import sys; sys.exit(78)", 78)],
)
def test_how_a_run_ends_unfinished(run: RunDir, start: Start, hook: Hook, event: str, program: str, code: int) -> None:
    assert start(program, notify=Notify(webhook="$MY_HOOK", events=["stop", "no_progress"])).wait(120) == code
    wait_until(lambda: hook.heard, "the webhook")
    assert [message["event"] for message in hook.heard] == [event]
    assert "the run ends unfinished" in hook.heard[0]["text"]


def test_what_does_not_get_through_holds_up_nothing(
    run: RunDir, start: Start, hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook.status = 500
    process = start("print('hello')", notify=Notify(webhook="$MY_HOOK", command=["/nonexistent/program"]))
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 0 and run.done
    assert "the webhook was not told of done: HTTPError 500" in said and "secret-path" not in said
    assert "the command was not told of done: FileNotFoundError" in said
    monkeypatch.setattr("slurm.notify.sys.executable", "/nonexistent/python")
    from slurm.notify import Notifier

    Notifier(run, Notify(command=["true"])).tell("done", "done")  # no process could be started: that is said


def test_a_slow_one_ends_with_the_job(run: RunDir) -> None:
    from slurm.notify import Notifier

    notifier = Notifier(run, Notify(command=["sleep", "30"]))
    begin = time.monotonic()
    notifier.tell("done", "done")
    notifier.finish(seconds=0.2)
    assert time.monotonic() - begin < 10  # it would take 30
    for process in notifier._sent:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("webhook", "words"),
    [
        ("https://hooks.example.org/T0/secret", "would be written to files"),
        ("$NOT_SET_HERE", "is not set in this shell"),
    ],
)
def test_an_address_stands_in_no_file(webhook: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as refused:
        make_job({"name": "x", "notify": {"webhook": webhook}}, "here")
    assert "T0/secret" not in str(refused.value)
    with pytest.raises(ConfigError, match="did you mean"):
        make_job({"name": "x", "notify": {"comand": ["true"]}}, "here")
