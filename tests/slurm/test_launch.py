"""The command line without a Slurm: dry runs, run folders, names, what a resume and a fork may change."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import flags
import launch
from settings import dump_yaml, read_yaml
from slurm import submission
from slurm.rundir import RunDir
from slurm.snapshot import ROOT
from tests.trainer.data.samples import texts, write_rows, write_tokenizer

TINY = {
    "model_type": "llama",
    "vocab_size": 512,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
}
RECIPE = {
    "model": {"config": TINY, "tokenizer": "tokenizer"},
    "data": {"train": ["train.jsonl"], "seq_len": 8},
    "train": {"steps": 10, "global_batch_size": 48},
    "optim": {"lr": 1e-3},
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick_imports: None) -> Path:
    """A recipe with its files, in a folder of its own, on a machine without Slurm."""
    monkeypatch.chdir(tmp_path)
    write_tokenizer(tmp_path / "tokenizer")
    write_rows(tmp_path / "train.jsonl", texts(200))
    (tmp_path / "sft.yaml").write_text(dump_yaml(RECIPE))
    return tmp_path


Said = pytest.CaptureFixture[str]


def dry(capsys: Said, *argv: str) -> tuple[str, str]:
    """The script of a dry run on a cluster that is not here, and what was said of it."""
    assert launch.main(["--dry-run", "--cluster", "generic", *argv]) == 0
    out = capsys.readouterr()
    return out.out, out.err


def made(capsys: Said, *argv: str) -> RunDir:
    """A run folder that is not submitted."""
    assert launch.main(["--no-submit", "--cluster", "generic", *argv]) == 0
    return RunDir(Path(capsys.readouterr().out.splitlines()[-1].split(" is ready:")[0]))


def test_bare_prints_the_day_and_submits_nothing(capsys: Said) -> None:
    assert launch.main([]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 6


@pytest.mark.parametrize("verb", ["", *flags.VERBS])
def test_help_has_an_example_and_fits_100_columns(capsys: Said, verb: str) -> None:
    assert launch.main([*filter(None, [verb]), "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    words = lines[-1].removeprefix("example: launch.py ").split()
    found, _, _ = flags.parse(words)  # the example is one
    assert found == (verb or "submit")
    assert ("--rank" in "".join(lines)) == (verb in ("", "logs"))


def test_flags_stand_before_or_after_the_verb() -> None:
    for words in (["--json", "status", "x"], ["status", "--json", "x"], ["status", "x", "--json"]):
        verb, args, job = flags.parse(words)
        assert (verb, args.json, args.words, job) == ("status", True, ["x"], {})


def test_a_dry_run_prints_the_script_alone_and_says_what_it_costs(here: Path, capsys: Said) -> None:
    script, said = dry(capsys, "--nodes", "2", "--gpus", "8", "sft.yaml", "-t", "12:00:00", "--time-min", "02:00:00")
    assert script.startswith("#!/bin/bash\n") and "#SBATCH --time=12:00:00\n#SBATCH --time-min=02:00:00\n" in script
    assert "2 nodes x 8 GPUs = 16 ranks" in said and "192.0 GPU-hours a job (16 GPUs x 12:00:00)" in said
    assert max(map(len, said.replace(str(here), "").splitlines())) <= 100
    assert "global batch 48 = 3 micro x 1 accumulation x 16 ranks" in said
    assert not Path("runs").exists()
    assert launch.main(["--dry-run", "--json", "--cluster", "generic", "sft.yaml", "--max-attempts", "3"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["layout"] == "1 node x 1 GPU = 1 rank" and told["job"]["max_attempts"] == 3


def test_without_slurm_a_dry_run_shows_the_generic_script(here: Path, capsys: Said) -> None:
    assert launch.main(["--dry-run", "--nodes", "2", "--gpus", "8", "sft.yaml"]) == 0
    assert "on generic (no Slurm answers here)" in capsys.readouterr().err


def test_no_submit_makes_the_script_of_the_dry_run(here: Path, capsys: Said) -> None:
    words = ["--nodes", "2", "--gpus", "8", "-t", "12:00:00", "sft.yaml", "job.setup=[module load x]"]
    script, _ = dry(capsys, *words)
    run = made(capsys, *words)
    assert run.script.read_text() == script
    assert not run.jobs() and stat.S_IMODE(run.path.stat().st_mode) == 0o700
    assert read_yaml(run.path / "config.yaml")["optim"]["eps"] == 1e-8  # every default is written out


def test_precedence(here: Path, capsys: Said) -> None:
    job = {"partition": "recipe", "qos": "recipe", "account": "recipe"}
    (here / "sft.yaml").write_text(dump_yaml({**RECIPE, "job": job}))
    script, _ = dry(capsys, "sft.yaml", "--partition", "flag", "--qos", "flag", "job.qos=word")
    assert all(f"--{flag}" in script for flag in ("account=recipe", "partition=flag", "qos=word"))


def test_the_account_of_the_users_shell(here: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SBATCH_ACCOUNT", "p42")
    assert "--account=p42" in dry(capsys, "sft.yaml")[0]
    assert "--account=other" in dry(capsys, "sft.yaml", "-A", "other")[0]


def test_an_unfinished_runs_name_is_refused_and_a_finished_ones_is_numbered(here: Path, capsys: Said) -> None:
    run = made(capsys, "sft.yaml")
    assert launch.main(["--no-submit", "--cluster", "generic", "sft.yaml"]) == 78
    assert "launch.py resume sft" in capsys.readouterr().err
    run.write_done("test")
    assert "--job-name=sft-2" in dry(capsys, "sft.yaml")[0]
    assert launch.main(["--dry-run", "--cluster", "generic", "sft.yaml", "--name", "sft"]) == 78


def test_a_run_is_for_its_user_alone(here: Path, capsys: Said) -> None:
    before = os.umask(0o002)  # of a project's shared folder
    try:
        run = made(capsys, "sft.yaml")
    finally:
        os.umask(before)
    assert stat.S_IMODE(run.path.stat().st_mode) == 0o700


def test_a_group_reads_a_run_that_is_shared(here: Path, capsys: Said) -> None:
    before = os.umask(0o077)
    try:
        run = made(capsys, "sft.yaml", "--share")
    finally:
        os.umask(before)
    assert stat.S_IMODE(run.path.stat().st_mode) == 0o750
    assert "umask 027" in run.script.read_text()
    for path in run.path.rglob("*"):
        wanted = stat.S_IRGRP | (stat.S_IXGRP if path.is_dir() else 0)
        assert path.stat().st_mode & wanted == wanted and not path.stat().st_mode & stat.S_IWOTH, path


# --- resume and fork ------------------------------------------------------------------------------------


def refused(capsys: Said, *argv: str) -> str:
    assert launch.main([*argv]) == 78
    return capsys.readouterr().err.removeprefix("outlast: ").rstrip()


def test_a_resume_changes_the_layout_and_nothing_else(here: Path, capsys: Said) -> None:
    run = made(capsys, "sft.yaml")
    words = ["resume", "sft", "--nodes", "2", "--gpus", "4", "engine.kind=fsdp", "job.qos=long", "--dry-run"]
    assert launch.main(words) == 0
    out = capsys.readouterr()
    assert "--nodes=2" in out.out and "--qos=long" in out.out and "x 8 ranks" in out.err
    assert "kind: ddp" in (run.path / "config.yaml").read_text()  # a dry run writes nothing
    line = refused(capsys, "resume", "sft", "optim.lr=2e-5")
    assert line == (
        "optim.lr was 0.001 and would be 2e-05: that is another run: start it with --fork sft optim.lr=2e-05"
    )
    assert "did you mean optim.lr?" in refused(capsys, "resume", "sft", "optim.lrr=1")
    assert "does not divide by 5 ranks" in refused(capsys, "resume", "sft", "--gpus", "5")
    assert "takes no --name" in refused(capsys, "resume", "sft", "--name", "x")


def test_a_run_of_another_user_is_forked_not_resumed(here: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    made(capsys, "sft.yaml")
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert "belongs to another user" in refused(capsys, "resume", "sft", "--dry-run")


def with_checkpoint(run: RunDir, step: int) -> Path:
    folder = run.path / "checkpoints" / f"step-{step:08d}-e0001"
    folder.mkdir(parents=True)
    (folder / "MANIFEST.json").write_text("{}")
    return folder


def test_a_fork_takes_the_other_runs_recipe_and_keeps_its_checkpoint(here: Path, capsys: Said) -> None:
    run = made(capsys, "sft.yaml", "--gpus", "4")
    first, second = with_checkpoint(run, 5), with_checkpoint(run, 8)
    script, said = dry(capsys, "--fork", "sft", "optim.lr=5e-4")
    assert "--job-name=sft-fork" in script and str(second) in said and "4 GPUs = 4 ranks" in said
    assert str(first) in dry(capsys, "--fork", f"{run.path}@5", "sft.yaml", "--name", "other")[1]
    line = refused(capsys, "--dry-run", "--cluster", "generic", "--fork", "sft@6")
    assert line.endswith("steps that are there: 8, 5")


def test_what_a_fork_starts_from_outlives_the_other_run(tmp_path: Path) -> None:
    from durable import keep

    checkpoint = with_checkpoint(RunDir(tmp_path / "a"), 5)
    keep(checkpoint, tmp_path / "b" / "kept")
    (checkpoint / "MANIFEST.json").unlink()
    assert (tmp_path / "b" / "kept" / "MANIFEST.json").read_text() == "{}"


def test_where_no_hard_link_can_be_a_fork_knows_where_its_checkpoint_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another file system, or a colleague's file: the kernel refuses a hard link to it."""
    from durable import keep

    def refuses(*paths: Path) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "link", refuses)
    checkpoint = with_checkpoint(RunDir(tmp_path / "a"), 5)
    keep(checkpoint, tmp_path / "b" / "kept")
    assert (tmp_path / "b" / "kept").resolve() == checkpoint


def test_a_fork_from_what_its_user_may_not_read(here: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = with_checkpoint(made(capsys, "sft.yaml"), 5)
    monkeypatch.setattr(os, "access", lambda path, mode: path != checkpoint)  # root may read everything
    line = refused(capsys, "--dry-run", "--cluster", "generic", "--fork", "sft")
    assert line == f"--fork sft: {checkpoint} cannot be read: ask its owner to share the run (--share)"


# --- what ends a call -----------------------------------------------------------------------------------


def test_ctrl_c_before_the_job_is_sent_leaves_nothing(
    here: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(ready: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(submission, "prepare_data", interrupted)
        assert launch.main(["--no-submit", "--cluster", "generic", "sft.yaml"]) == 130
    assert not (here / "runs" / "sft").exists()
    made(capsys, "sft.yaml")  # the name is free


def test_a_reader_that_has_seen_enough_is_no_error(here: Path) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    argv = [sys.executable, "-u", str(ROOT / "launch.py"), "--help"]
    done = subprocess.run(argv, stdout=theirs, stderr=subprocess.PIPE, text=True)
    os.close(theirs)
    assert (done.returncode, done.stderr) == (0, "")


def test_without_a_recipe_the_one_here_is_taken_and_named(here: Path, capsys: Said) -> None:
    (here / "sft.yaml").rename("recipe.yaml")
    script, said = dry(capsys)
    assert "--job-name=recipe\n" in script and said.startswith("no recipe given: taking recipe.yaml\n")


# --- imports --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "absent"),
    [
        (["--help"], ["msgspec", "yaml", "torch", "transformers", "submitit", "json", "pathlib"]),
        (["--dry-run", "--cluster", "generic", "sft.yaml"], ["torch", "transformers", "submitit", "numpy", "rich"]),
    ],
)
def test_a_call_loads_what_it_needs(here: Path, words: list[str], absent: list[str]) -> None:
    code = f"import sys, launch; launch.main({words!r}); print([m for m in {absent} if m in sys.modules])"
    env: dict[str, Any] = {**os.environ, "PYTHONPATH": str(ROOT)}
    argv = [sys.executable, "-S", "-c", code] if "--help" in words else [sys.executable, "-c", code]
    shown = subprocess.run(argv, capture_output=True, text=True, check=True, env=env)
    assert shown.stdout.splitlines()[-1] == "[]"


def test_what_is_for_a_command_alone_is_refused_without_one(here: Path, capsys: Said) -> None:
    assert "USR1" not in dry(capsys, "--stop-signal", "USR1", "--", "true")[0]  # it is the job's, not sbatch's
    line = refused(capsys, "--dry-run", "--cluster", "generic", "sft.yaml", "--stop-signal", "USR1")
    assert line.startswith("command line: stop_signal is for a command after --")


def test_a_python_without_our_packages_is_said_in_a_line() -> None:
    argv = [sys.executable, "-S", str(ROOT / "launch.py"), "status"]  # -S: no site-packages
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 78 and done.stderr.count("\n") == 1, done.stderr
    assert f"{sys.executable} has no " in done.stderr and "source .venv/bin/activate" in done.stderr
