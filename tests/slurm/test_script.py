"""The sbatch text against golden files, and hostile paths through a real shell."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from settings import ConfigError
from slurm.config import JobConfig, make_job
from slurm.script import submission_text
from slurm.walltime import Walltime

GOLDEN = Path(__file__).parent.parent / "golden"

JOBS = {
    "plain": JobConfig(name="sft", nodes=2, gpus_per_node=8),
    "full": JobConfig(
        name="sft",
        nodes=4,
        gpus_per_node=4,
        walltime=Walltime.parse("1-12:00:00"),
        partition="gpu",
        account="p1234",
        qos="long",
        constraint="a100",
        mem="0",
        cpus_per_gpu=8,
        mail_user="me@example.org",
        sbatch={"exclusive": True, "comment": "two words", "nice": 5, "hold": False},
        setup=["module load cuda/12.4"],
        environment={"NCCL_DEBUG": "WARN", "NOTE": "it's"},
        continue_by="requeue",
    ),
}


@pytest.mark.parametrize("name", JOBS)
def test_golden(name: str) -> None:
    text = submission_text(JOBS[name], Path("/runs/sft"), Path("/env/bin/python"), Path("/home/me"))
    path = GOLDEN / f"submission-{name}.sh"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


def test_a_hostile_run_folder_reaches_the_supervisor_whole(tmp_path: Path) -> None:
    run_dir = tmp_path / 'it\'s $HOME `x` %j "q" #1'
    (run_dir / "code").mkdir(parents=True)
    python = tmp_path / "my python"
    python.write_text('#!/bin/bash\nprintf "%s\\n" "$PYTHONPATH" "$@"\n')
    python.chmod(0o755)
    script = tmp_path / "submission.sh"
    script.write_text(submission_text(JobConfig(name="x"), run_dir, python, tmp_path))
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": "/theirs"}
    shown = subprocess.run(["bash", str(script), "--after", "12"], capture_output=True, text=True, check=True, env=env)
    assert shown.stdout.splitlines() == [
        f"{run_dir}/code:/theirs",
        *("-P", "-m", "slurm.supervisor", str(run_dir), "--after", "12"),
    ]


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"partition": "gpu\n#SBATCH --wrap=x"}, "--partition='gpu\\n#SBATCH --wrap=x': a line break"),
        ({"sbatch": {"comment": "a\ntouch pwned #"}}, "--comment='a\\ntouch pwned #': a line break"),
        ({"sbatch": {"comment=a\ntouch pwned #": "x"}}, "sbatch has no option 'comment=a\\ntouch pwned #'"),
        ({"environment": {"A; touch pwned; B": "x"}}, "environment: 'A; touch pwned; B' is no name"),
    ],
)
def test_what_would_become_a_line_of_the_shell_is_refused(told: dict[str, Any], said: str) -> None:
    job = make_job({"name": "x", **told}, "recipe.yaml")
    with pytest.raises(ConfigError, match=re.escape(said)):
        submission_text(job, Path("/runs/x"), Path("/env/bin/python"), Path("/home/me"))


@pytest.mark.skipif(os.getuid() != 0, reason="only root may give a folder away")
def test_the_code_of_another_user_is_not_run(tmp_path: Path) -> None:
    code = tmp_path / "code"
    code.mkdir()
    os.chown(code, os.getuid() + 1, -1)
    script = tmp_path / "submission.sh"
    script.write_text(submission_text(JobConfig(name="x"), tmp_path, Path("/bin/echo"), tmp_path))
    done = subprocess.run(["bash", str(script)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr.startswith("outlast: this run's code is not yours: start a run of your own")


def test_a_set_up_line_that_fails_ends_the_job(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    script = tmp_path / "submission.sh"
    script.write_text(submission_text(JobConfig(name="x", setup=["false"]), tmp_path, Path("/bin/echo"), tmp_path))
    done = subprocess.run(["bash", str(script)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
