"""The container definitions, read as apptainer reads them; to build one needs a machine with apptainer and a network."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from settings import convert
from slurm.config import JobConfig

ROOT = Path(__file__).parent.parent
DEFINITIONS = sorted((ROOT / "envs" / "containers").glob("*.def"))
SECTIONS = {"arguments", "environment", "files", "help", "labels", "post", "test"}
MACHINES = {"x86_64", "aarch64"}


def read(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Header and sections of a definition."""
    head, *parts = re.split(r"^%(\w+)\n", path.read_text(), flags=re.MULTILINE)
    header = dict(line.split(": ", 1) for line in head.splitlines() if line and not line.startswith("#"))
    return header, dict(zip(parts[::2], parts[1::2], strict=True))


def assert_shell(text: str) -> None:
    checked = subprocess.run(["sh", "-n"], input=text, text=True, capture_output=True)
    assert not checked.returncode, checked.stderr


def test_there_is_one_for_each_kind_of_node() -> None:
    assert {path.stem for path in DEFINITIONS} == {"cuda-x86_64", "cuda-aarch64", "rocm-x86_64"}


@pytest.mark.parametrize("path", DEFINITIONS, ids=lambda path: path.stem)
def test_a_definition(path: Path) -> None:
    header, sections = read(path)
    api, _, machine = path.stem.partition("-")
    assert header["Bootstrap"] == "docker" and header.keys() == {"Bootstrap", "From"}
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", header["From"])  # a tag that does not move
    assert sections.keys() == SECTIONS

    arguments = dict(line.strip().split("=", 1) for line in sections["arguments"].splitlines() if line.strip())
    used = set(re.findall(r"{{ (\w+) }}", "".join(sections.values())))
    assert used == arguments.keys() and all(value.startswith("https://") for value in arguments.values())
    for line in filter(str.strip, sections["files"].splitlines()):
        source, target = line.split()
        assert (ROOT / source).is_file() and target.startswith("/opt/outlast/")
        assert target in sections["post"] + (ROOT / "envs/containers/install.sh").read_text() or Path(target).suffix
    for section in ("post", "environment", "test"):
        text = re.sub(r"{{ (\w+) }}", lambda found: arguments[found[1]], sections[section])
        assert_shell(text)
        assert not re.search(r"TOKEN|SECRET|PASSWORD|SLURM_|LD_PRELOAD", text)
    assert f"torch.version.{'hip' if api == 'rocm' else 'cuda'}" in sections["test"] and machine in MACHINES
    assert f"'{machine}'" in sections["test"]

    # What its help says is a job that the launcher takes.
    words = re.search(r"rank_command: \[(.*)\]", sections["help"])
    assert words
    command = [word.strip().strip('"') for word in words[1].split(",")]
    convert({"name": "x", "rank_command": command}, JobConfig, str(path))
    assert command[2] == ("--rocm" if api == "rocm" else "--nv") and command[-1] == f"{path.stem}.sif"


def test_what_they_install_is_what_the_project_needs() -> None:
    text = (ROOT / "envs" / "containers" / "install.sh").read_text()
    assert_shell(text)
    wanted = re.search(r"<<'END'\n(.*?)END\n", text, re.DOTALL)
    assert wanted
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    code = wanted[1].replace('open("pyproject.toml", "rb")', f'open("{ROOT}/pyproject.toml", "rb")')
    shown = subprocess.run(["python3", "-c", code], capture_output=True, text=True, check=True).stdout.split("\n")
    assert set(project["dependencies"]) <= set(shown) and any("peft" in line for line in shown)
    assert "constraints.txt" in text and "torch==" in (ROOT / "constraints.txt").read_text()
