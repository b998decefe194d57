"""The peers' own environment, benchmarks/.venv: the extra `bench` at the pins of constraints.txt. None of them is
measured beside packages that only Outlast needs (accelerate, for one, imports what it finds)."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import distributions
from pathlib import Path

from benchmarks.processes import last_line

ROOT = Path(__file__).parent.parent
FOLDER = Path(__file__).parent / ".venv"
BIN = FOLDER / "bin"
PINS = ROOT / "constraints.txt"


def requirements() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return list(project["optional-dependencies"]["bench"])


def name_of(requirement: str) -> str:
    return re.split(r"[^\w-]", requirement)[0]


def install() -> dict[str, str]:
    """Make the environment unless it stands. What the package index does not give: its name and pip's last word."""
    stamp, asked = FOLDER / "installed.txt", "\n".join([*requirements(), PINS.read_text()])
    if stamp.exists() and stamp.read_text() == asked:
        return {}
    print("installing the peers into benchmarks/.venv", flush=True)
    if not (BIN / "python").exists():
        subprocess.run([sys.executable, "-m", "venv", FOLDER], check=True)
    said = {name_of(requirement): _pip(requirement) for requirement in requirements()}
    missing = {name: reason for name, reason in said.items() if reason}
    if not missing:  # else the next run asks again
        stamp.write_text(asked)
    return missing


def versions() -> dict[str, str]:
    """Of the peers that are installed."""
    wanted = set(map(name_of, requirements()))
    found = distributions(path=list(map(str, FOLDER.glob("lib/python*/site-packages"))))
    return dict(sorted((one.name, one.version) for one in found if one.name in wanted))


def _pip(requirement: str) -> str | None:
    """One at a time and in the extra's order, torch first: one that fails leaves the others."""
    pip = [str(BIN / "python"), "-m", "pip", "--disable-pip-version-check"]
    done = subprocess.run([*pip, "install", "-q", "-c", str(PINS), requirement], capture_output=True, text=True)
    return last_line(done.stderr) or f"pip left with {done.returncode}" if done.returncode else None
