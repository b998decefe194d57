"""The newcomer's walk (docs/walk.sh): from a clone to a run that was cut and went on, within 15 minutes."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
WALK = ROOT / "docs" / "walk.sh"
AS_NOBODY = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
QUARTER_OF_AN_HOUR = 900  # seconds; downloads count too, from a cache or a near mirror


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that other users can enter, with a clone of this repository."""
    folder = Path(tempfile.mkdtemp(prefix="walk-", dir="/var/tmp"))
    folder.chmod(0o755)
    subprocess.run(["git", "clone", "-q", "--bare", str(ROOT), str(folder / "house.git")], check=True)
    yield folder
    shutil.rmtree(folder)


def walk(place: Path, variables: dict[str, str], *words: str, before: Sequence[str] = ()) -> str:
    (place / "tmp").mkdir()
    if before:
        subprocess.run(["chown", "-R", "nobody:nogroup", str(place)], check=True)
    env = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "VIRTUAL_ENV"))}
    env |= {"HOME": str(place), "TMPDIR": str(place / "tmp"), "OUTLAST_POCKET_DIR": str(place / "pocket"), **variables}
    argv = [*before, "sh", shutil.copy(WALK, place), str(place / "house.git"), *words]
    with (place / "told").open("w+") as told:
        process = subprocess.Popen(argv, env=env, cwd=place, stdout=told, stderr=told, start_new_session=True)
        try:
            process.wait(2 * QUARTER_OF_AN_HOUR)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait()
        said = (place / "told").read_text()
    assert process.returncode == 0, said
    assert "none skipped, none twice" in said
    (seconds,) = re.findall(r"^== after (\d+) s: cut by its time limit, and trained to its end", said, re.M)
    print(f"walked in {seconds} s")
    return said


def packages() -> dict[str, str]:
    """Where this user's pip looks, as variables for somebody who has not its files."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    pairs = (line.split("=", 1) for line in listed.stdout.splitlines())
    own = {name.removeprefix("global."): value for name, value in pairs if name.startswith("global.")}
    return {f"PIP_{name.upper().replace('-', '_')}": shlex.split(value)[0] for name, value in own.items()}


@pytest.mark.nightly
def test_as_this_user(place: Path) -> None:
    told = walk(place, packages())
    assert "2 nodes x 2 GPUs = 4 ranks" in told or os.getuid() != 0


@pytest.mark.nightly
@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else; test_as_this_user has shown it")
def test_as_an_ordinary_user_in_local_mode(place: Path) -> None:
    others = [python for python in (os.path.realpath(sys.executable), "/usr/bin/python3") if runs(python)]
    told = walk(place, {**packages(), "PYTHON": others[0]}, "local", before=AS_NOBODY)
    assert "on local" in told and "pocket" not in told


def runs(python: str) -> bool:
    # By a shell: setpriv itself still has root's rights when it starts a program.
    argv = [*AS_NOBODY, "sh", "-c", '"$0" -c "import ensurepip"', python]
    return subprocess.run(argv, capture_output=True).returncode == 0


def test_the_readme_says_what_the_walk_types() -> None:
    said = (ROOT / "README.md").read_text()
    typed = [line.strip() for line in WALK.read_text().splitlines()]
    lines = [line for line in typed if line.startswith(("make ", ". .venv", "python launch.py --", "python -m "))]
    assert len(lines) == 5
    for line in lines:
        assert line in said, line
