"""The drill as a user calls it: faults on a real Slurm, each of them seen, and nothing lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from envs.drill.drill import WHOLE
from envs.drill.faults import QUICK
from envs.pocket import Pocket, find
from tests.cluster.conftest import ROOT


def drill(recipe: Path, *words: str, **variables: str) -> dict[str, Any]:
    argv = [sys.executable, str(ROOT / "launch.py"), "drill", str(recipe), "--json", *words]
    environ = {**os.environ, **variables}
    done = subprocess.run(argv, cwd=recipe.parent, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    assert result["ok"] and not any(row["wrong"] for row in result["rows"])
    assert all(not wrong for wrong in result["compared"].values())
    return result


def test_the_drill_of_ten_minutes(recipe: Path) -> None:
    """Killed, cut, preempted and robbed of a node, it is bit for bit the run that nobody hurt; cancelled, it is gone."""
    result = drill(recipe)
    assert [row["number"] for row in result["rows"]] == [*(fault.number for fault in QUICK), "F13"]
    assert list(result["compared"]) == ["chain"]
    assert not list((recipe.parent / "runs").iterdir()) and find("pocket-drill") is None


@pytest.mark.nightly
def test_at_a_site_it_does_what_a_user_may_do(recipe: Path, pocket: Pocket) -> None:
    """A pocket stands for the site's Slurm, which a profile of the user's own describes."""
    (recipe.parent / "hill.yaml").write_text("description: a site\njob: {poll_seconds: 2.0}\n")
    words = ["--cluster", "./hill.yaml", "--nodes", "2", "--gpus", "2", "--launcher", "fork"]
    result = drill(recipe, *words, OMP_NUM_THREADS="1", **pocket.env())
    assert [row["number"] for row in result["rows"]] == ["F5", "F3", "F13"]
    assert list(result["compared"]) == ["chain"]
    assert not list((recipe.parent / "runs").iterdir()) and not pocket.jobs()


@pytest.mark.nightly
def test_the_whole_matrix(recipe: Path) -> None:
    result = drill(recipe, "--all")
    injected = [fault.number for course in WHOLE.courses for fault in course.faults]
    others = ["F13"] * 4 + ["F14"] * 2 + ["F17", "F22"] + ["F16"] * 4
    assert [row["number"] for row in result["rows"]] == injected + others
    assert set(result["compared"]) == {course.name for course in WHOLE.courses}


@pytest.mark.nightly
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_twenty_random_faults_in_one_run(recipe: Path, seed: int) -> None:
    result = drill(recipe, "--random", "20", "--seed", str(seed))
    assert len(result["rows"]) == 20 and sum(row["lost"] for row in result["rows"]) > 0
