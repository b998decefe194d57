"""The command line: every mistake is one line and exit 78 before anything is written or queued."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import launch
from settings import dump_yaml

RECIPE = {
    "model": {"config": {"model_type": "llama"}, "tokenizer": "tokenizer"},
    "data": {"train": ["train.jsonl"], "seq_len": 8},
    "train": {"steps": 10, "global_batch_size": 48},
    "optim": {"lr": 1e-3},
}


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe with its files, in a folder of its own, on a machine without Slurm."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLURM_CONF", "/nonexistent/slurm.conf")
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "train.jsonl").write_text('{"text": "a"}\n')
    path = tmp_path / "sft.yaml"
    path.write_text(dump_yaml(RECIPE))
    return path


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one line with which a command is refused; nothing was written."""
    assert launch.main(["--cluster", "local", *argv]) == 78
    line = capsys.readouterr().err
    assert line.startswith("outlast: ") and line.count("\n") == 1
    assert not Path("runs").exists()
    return line.removeprefix("outlast: ").rstrip()


def test_bare_prints_the_day_and_submits_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert launch.main([]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 6


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["optim.lrr=1"], "sft.yaml: unknown key optim.lrr: did you mean optim.lr?"),
        (["optim.lr=fast"], "sft.yaml: optim.lr=fast: expected float, got str"),
        (["--nodes", "two"], "argument -N/--nodes: invalid int value: 'two'; launch.py --help shows every flag"),
        (
            ["--sbatch", "nodes=3"],
            "--sbatch nodes: launch.py sets it: see its own flags in --help",
        ),
        (
            ["--sbatch", "requeue"],
            "--sbatch requeue: launch.py sets it: see its own flags in --help",
        ),
        (["job=3"], "sft.yaml: job=3: a mapping of job settings is expected, as nodes: 2"),
        (["data=3"], "sft.yaml: data=3: expected object, got int"),
        (["job.nodess=2"], "sft.yaml: unknown key nodess: did you mean nodes?"),
        (["data.train=[gone.jsonl]"], "sft.yaml: data.train: there is no file gone.jsonl"),
        (["model.tokenizer=gone"], "sft.yaml: model.tokenizer: there is no folder gone"),
        (["train.epochs=1"], "sft.yaml: give either train.steps or train.epochs, not both or none"),
        (
            ["--walltime", "24:00"],
            "sft.yaml: walltime=24:00: 24:00: a walltime is written [D-]HH:MM:SS, for example 24:00:00 or 2-00:00:00",
        ),
        (["--launcher", "mpi"], "sft.yaml: launcher=mpi: valid here: srun, torchrun, deepspeed, fork"),
        (
            ["--gpus", "5"],
            "train.global_batch_size=48 does not divide by 5 ranks (48 / 5 = 9.60): take 4 ranks, or train.global_batch_size=50",
        ),
        (
            ["--gpus", "32"],
            "--gpus 32: local has 16 GPUs a node: --nodes 2 --gpus 16 is the same 32 ranks (2 nodes x 16 GPUs = 32 ranks)",
        ),
        (
            ["train.micro_batch_size=5"],
            "train.micro_batch_size=5 does not divide a rank's share of 24 sequences (48 / 2 ranks): take train.micro_batch_size=4",
        ),
    ],
)
def test_mistakes(recipe: Path, capsys: pytest.CaptureFixture[str], argv: list[str], line: str) -> None:
    assert refused(capsys, "sft.yaml", *argv) == line


def test_two_nodes_without_a_cluster_get_the_lines_that_work(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "--nodes", "2", "sft.yaml")
    assert all(way in line for way in ("pocket up --nodes 2", "--cluster NAME --dry-run", "--nodes 1"))


def test_a_mistyped_verb_is_answered_with_the_nearest(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean status?" in refused(capsys, "statsu")
    assert "did you mean sft.yaml" in refused(capsys, "sft.yml")


def test_data_that_cannot_be_used_is_found_before_the_run_starts(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = launch.submission.ROOT / "recipes" / "demo" / "tokenizer"
    Path("train.jsonl").write_text("not json\n" * 3)
    assert launch.main(["--cluster", "local", "sft.yaml", f"model.tokenizer={tokenizer}"]) == 78
    line = capsys.readouterr().err.splitlines()[-1]
    assert "train.jsonl" in line and "rejects.jsonl" in line
    assert not Path("runs/sft").exists()


def test_a_dry_run_without_slurm_shows_the_generic_script(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch.main(["--nodes", "2", "--gpus", "8", "--dry-run", "sft.yaml", "-t", "12:00:00"]) == 0
    text = capsys.readouterr().out
    assert "2 nodes x 8 GPUs = 16 ranks" in text and "#SBATCH --time=12:00:00" in text
    assert not Path("runs").exists()


def test_precedence(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe.write_text(dump_yaml({**RECIPE, "job": {"partition": "recipe", "qos": "recipe", "account": "recipe"}}))
    words = ["--dry-run", "sft.yaml", "--partition", "flag", "--qos", "flag", "job.qos=word", "--cluster", "generic"]
    assert launch.main(words) == 0
    text = capsys.readouterr().out
    assert all(f"--{flag}" in text for flag in ("account=recipe", "partition=flag", "qos=word"))


def test_the_account_of_the_users_shell(
    recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SBATCH_ACCOUNT", "p42")
    assert launch.main(["--dry-run", "--cluster", "generic", "sft.yaml"]) == 0
    assert "--account=p42" in capsys.readouterr().out
    assert launch.main(["--dry-run", "--cluster", "generic", "sft.yaml", "-A", "other"]) == 0
    assert "--account=other" in capsys.readouterr().out


def test_an_unfinished_runs_name_is_refused_and_a_finished_ones_is_numbered(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--dry-run", "--cluster", "generic", "sft.yaml"]
    Path("runs/sft").mkdir(parents=True)
    Path("runs/sft/job.yaml").touch()
    assert launch.main(words) == 78
    assert "launch.py resume sft" in capsys.readouterr().err
    Path("runs/sft/DONE").touch()
    assert launch.main(words) == 0
    assert "--job-name=sft-2" in capsys.readouterr().out
    assert launch.main([*words, "--name", "sft"]) == 78


def test_import_launch_loads_no_torch_and_no_submitit() -> None:
    code = "import sys, launch; print([m for m in ('torch', 'transformers', 'submitit', 'numpy', 'rich') if m in sys.modules])"
    root = str(launch.submission.ROOT)
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert shown.stdout.strip() == "[]"
