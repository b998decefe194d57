"""Our modules and a user's never meet, whatever they are called, under every launcher."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from slurm.rundir import RunDir
from tests.launchers import LAUNCHERS
from tests.slurm.conftest import ROOT, Start, causes

OURS = ("slurm", "settings", "durable", "timeline", "trainer", "launch", "envs")

# A user's program whose modules are called as ours. Which files does it get?
PROGRAM = f"""
import importlib, json, os, sys
found = {{name: importlib.import_module(name).__file__ for name in {OURS}}}
found["path"] = sys.path
found["PYTHONPATH"] = os.environ["PYTHONPATH"]
found["argv"] = sys.argv[1:]
with open(os.environ["OUTLAST_RUN_DIR"] + "/found-" + os.environ["RANK"], "w") as file:
    json.dump(found, file)
"""


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("module", ["slurm", pytest.param("program", marks=pytest.mark.nightly)])
def test_a_users_module_is_the_users(run: RunDir, start: Start, tmp_path: Path, launcher: str, module: str) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    for name in OURS:
        (theirs / f"{name}.py").write_text("")
    (theirs / f"{module}.py").write_text(
        f'if __name__ == "__main__":\n    {PROGRAM.strip().replace(chr(10), chr(10) + "    ")}\n'
    )
    process = start("", theirs, launcher=launcher, gpus_per_node=2, command=[sys.executable, "-m", module, "--x"])
    assert process.wait(120) == 0 and causes(run) == ["done"]
    for rank in range(2):
        found = json.loads((run.path / f"found-{rank}").read_text())
        assert {name: found[name] for name in OURS} == {name: str(theirs / f"{name}.py") for name in OURS}
        assert str(ROOT) not in found["path"] and found["PYTHONPATH"] == str(theirs) and found["argv"] == ["--x"]


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_our_modules_are_ours(run: RunDir, start: Start, tmp_path: Path, launcher: str) -> None:
    """Supervisor, shims and trainer, with a user's modules of the same names that end whoever imports them. The trainer
    is ours as far as its own word about a broken recipe."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    for name in OURS:
        (theirs / f"{name}.py").write_text("raise SystemExit('theirs')")
    process = start("", theirs, launcher=launcher, command=None)
    assert process.wait(120) == 78 and causes(run) == ["config"]
    logs = "".join(path.read_text() for path in run.attempt_dir(1).glob("*.log"))
    assert f"outlast: {run.path / 'config.yaml'}: there is no such file" in logs and "theirs" not in logs
