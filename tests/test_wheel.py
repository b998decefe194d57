"""The wheel: a command `outlast` that is launch.py, and nothing else of ours beside a user's packages."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """The sources as they stand here, since a build leaves things in them."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True)
    for name in listed.stdout.decode().split("\n"):
        if name and not name.startswith(("tests/", "benchmarks/", "docs/")) and (ROOT / name).is_file():
            (tmp_path / "house" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "house" / name).write_bytes((ROOT / name).read_bytes())
    return tmp_path / "house"


@pytest.mark.nightly
def test_an_empty_environment_has_the_command_and_what_it_needs(house: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "empty")], check=True)
    python = tmp_path / "empty" / "bin" / "python"
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "-q"]
    subprocess.run([*pip, "-c", str(ROOT / "constraints.txt"), str(house)], check=True)
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    for module in ("slurm", "trainer", "settings", "launch"):
        found = subprocess.run([str(python), "-c", f"import {module}"], capture_output=True, env=env, cwd=tmp_path)
        assert b"ModuleNotFoundError" in found.stderr, module
    for words in (["--help"], ["--cluster", "lumi-g", "--nodes", "2", "--dry-run", "--", "python", "train.py"]):
        ours, theirs = (
            subprocess.run(argv + words, capture_output=True, text=True, check=True, env=env, cwd=tmp_path).stdout
            for argv in ([str(python), str(house / "launch.py")], [str(python.with_name("outlast"))])
        )
        assert ours == re.sub(r"/\S+/site-packages/outlast", str(house), theirs)


def test_the_installed_command_is_launch_py(house: Path, tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-q", "--no-deps"]
    site = tmp_path / "site"
    subprocess.run([*pip, "--no-build-isolation", "--target", str(site), str(house)], check=True)
    assert {path.name.split("-")[0] for path in site.iterdir()} == {"outlast", "bin"}

    # Its dependencies are this environment's, which has nothing of ours.
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), sysconfig.get_paths()["purelib"]])}
    recipe = ["--cluster", "lumi-g", "--nodes", "2", "--dry-run", "--name", "x", "--", "python", "train.py"]
    for words in (["--help"], recipe):
        ours, theirs = (
            subprocess.run(argv + words, capture_output=True, text=True, check=True, env=env, cwd=tmp_path).stdout
            for argv in ([sys.executable, str(ROOT / "launch.py")], [str(site / "bin" / "outlast")])
        )
        assert theirs.replace(str(site / "outlast"), str(ROOT)) == ours
