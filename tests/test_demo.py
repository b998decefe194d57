"""`make demo`, as the README begins with it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from durable import read_lines

ROOT = Path(__file__).parent.parent


@pytest.mark.nightly
def test_the_demo_is_cut_and_preempted_and_done(tmp_path: Path) -> None:
    house = tmp_path / "house"  # a user's own run of that name lies in the checkout
    subprocess.run(["git", "clone", "-q", str(ROOT), str(house)], check=True)
    subprocess.run([sys.executable, "-m", "recipes.demo_data"], cwd=house, check=True)
    argv = [sys.executable, "-m", "envs.demo"]
    with tempfile.TemporaryDirectory(prefix="demo-", dir="/var/tmp") as place:
        Path(place).chmod(0o755)  # munge wants its folder seen by everybody
        env = {**os.environ, "OUTLAST_POCKET_DIR": place, "CI": "true"}  # a Slurm, or an error
        del env["SLURM_CONF"]
        try:
            done = subprocess.run(argv, cwd=house, env=env, capture_output=True, text=True)
        finally:
            subprocess.run([sys.executable, "-m", "envs.pocket", "down"], cwd=house, env=env, check=True)
    assert done.returncode == 0, done.stdout + done.stderr
    causes = [record["cause"] for record in read_lines(house / "runs" / "demo" / "attempts.jsonl")]
    assert {"timeout", "preemption"} <= set(causes) and causes[-1] == "done", done.stdout
    assert re.search(r"each used once .*none skipped, none twice", done.stdout)
