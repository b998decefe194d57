"""The foreground's line of progress."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest

from durable import append_line
from slurm.rundir import RunDir
from slurm.watch.live import Live, progress_line
from tests.slurm.conftest import ROOT
from tests.slurm.test_status import STEP, make_run

# Tells of its steps as the trainer does, in the events and in its log.
PROGRAM = """
import json, os, sys, time
run = os.environ["OUTLAST_RUN_DIR"]
claim = f"{run}/claims/0001.json"
told = {**json.load(open(claim)), "total_steps": 4}
open(claim, "w").write(json.dumps(told))
for step in (1, 2, 3, 4):
    print(f"step      {step} of 4  loss 2.5", flush=True)
    event = {"event": "step", "epoch": 1, "step": step, "loss": 2.5, "seconds": 0.4, "time": time.time()}
    open(f"{run}/events.jsonl", "a").write(json.dumps(event) + "\\n")
    time.sleep(0.4)
print("all steps are done", flush=True)
"""


def test_the_line(tmp_path: Path) -> None:
    run = make_run(tmp_path, "sft", "812")
    line = progress_line(run)
    assert line.startswith(
        "step 210 of 1,000 [####................]  loss 2.5000  4,000 tokens/s  MFU 40.0%  done in 26 min"
    )
    run.claim("813", 0, after=2)
    assert progress_line(run) == ""  # the newest attempt has done no step yet


def test_lines_stand_above_it_and_those_of_steps_give_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    run, out = make_run(tmp_path, "sft", "812"), io.StringIO()
    live = Live(run, out)
    live.draw()
    live.draw()  # nothing has happened
    live.emit("step    210 of 1000  loss 2.5")
    live.emit("held-out loss 2.4")
    append_line(run.events, {**STEP, "step": 211, "time": time.time()})
    live.draw()
    live.close()
    shown = out.getvalue().split("\r\033[K")
    line = "step 210 of 1,000 [####................]  loss 2.5000  4,00"
    assert shown[1:3] == [line, f"held-out loss 2.4\n{line}"] and len(line) == 59
    assert shown[3].startswith("step 211 of 1,000") and shown[3].endswith("\n") and len(shown) == 4


@pytest.mark.parametrize("terminal", [True, False])
def test_in_the_foreground(tmp_path: Path, terminal: bool) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    launch = [sys.executable, str(ROOT / "launch.py"), "--cluster", "local", "--gpus", "1", "--runs-dir", "runs"]
    argv = [*launch, "--", sys.executable, "-S", "program.py"]
    if not terminal:
        said = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True).stdout
        assert "step      3 of 4  loss 2.5\n" in said and "\r" not in said
    else:
        ours, theirs = pty.openpty()
        with subprocess.Popen(argv, cwd=tmp_path, stdout=theirs, stderr=theirs, stdin=subprocess.DEVNULL) as process:
            os.close(theirs)
            said = read_all(ours)
        os.close(ours)
        assert process.returncode == 0 and "step      3 of 4" not in said
        assert "\r\033[Kstep 4 of 4 [####################]  loss 2.5000" in said
    for word in ("attempt 1 starts at step 0", "all steps are done", "attempt 1 ended", "outlast: done"):
        assert word in said, said
    assert "outlast: done" in (RunDir(tmp_path / "runs" / "program").logs / "job-here.log").read_text()


def read_all(fd: int) -> str:
    found = b""
    while True:
        try:
            if not (data := os.read(fd, 4096)):
                return found.decode()
        except OSError:  # the other side is closed
            return found.decode()
        found += data
