"""Runs on a site's scratch: where they lie, and until when."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

import launch
from slurm.config import read_job
from slurm.rundir import RunDir
from slurm.sites import expiry, run_root
from slurm.sites.profile import Profile, Scratch, read_profile
from slurm.watch import status

DAY = 86_400


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the profile of a site that has a scratch, and no Slurm."""
    (tmp_path / "scratch").mkdir()
    work = tmp_path / "work"
    work.mkdir()
    (work / "ours.yaml").write_text("scratch: {path: $OUR_SCRATCH, purge_days: 10}\n")
    monkeypatch.chdir(work)
    monkeypatch.setenv("OUR_SCRATCH", str(tmp_path / "scratch"))
    return work


def submitted(*words: str) -> int:
    return launch.main(["--cluster", "./ours.yaml", "--no-submit", *words, "--", "train"])


def aged(run: RunDir, days: float) -> RunDir:
    for path in filter(Path.is_file, run.path.rglob("*")):
        os.utime(path, (time.time() - days * DAY,) * 2)
    return run


def test_runs_lie_on_scratch_and_every_verb_finds_them(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lie = site.parent / "scratch" / "outlast" / "runs"
    assert launch.main(["--cluster", "./ours.yaml", "--dry-run", "--name", "x", "--", "train"]) == 0
    shown = capsys.readouterr()
    assert f"--output={lie}/x/logs/" in shown.out and "removes what nobody reads for 10 days" in shown.err
    assert not Path("runs").is_symlink() and not lie.exists()  # nothing is written

    assert submitted("--name", "x") == 0 and submitted("--name", "y") == 0
    said = capsys.readouterr().out
    assert said.count(f"runs lie on this site's scratch, in {lie}: ./runs leads there") == 1
    assert Path("runs").resolve() == lie and {path.name for path in lie.iterdir()} == {"x", "y"}
    aged(RunDir(lie / "x"), 1.2)
    assert launch.main(["status", "x"]) == 0
    assert "expires in 9 days: the site removes what nobody reads for 10 days" in capsys.readouterr().out
    (lie / "x" / "config.yaml").touch()  # one that is read is not what goes first
    assert "expires in 9 days" in (status.status([RunDir(lie / "x")])[0].expires or "")
    assert "has expired" in (status.status([aged(RunDir(lie / "y"), 11)])[0].expires or "")

    assert submitted("--runs-dir", "here", "--name", "z") == 0
    assert read_job(Path("here/z")).purge_days is None and expiry.expiry(RunDir(Path("here/z"))) is None


def test_a_folder_of_ones_own_stays_where_it_is(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    profile = read_profile("ours.yaml")
    assert run_root.chosen("runs", profile) == site.parent / "scratch" / "outlast" / "runs"
    for path in ("/scratch/<project>", "$NOBODY_SETS_THIS", "a workspace that expires", "/nowhere"):
        assert run_root.chosen("runs", Profile("c", scratch=Scratch(path))) == Path("runs")
    Path("runs").mkdir()
    assert run_root.chosen("runs", profile) == Path("runs")


@pytest.mark.parametrize(
    ("form", "path", "days"),
    [
        ("/scratch/<project>", "/scratch/p1/me/runs", 7),
        ("/scratch/<project>", "/scratch2/p1", None),
        ("/lustre/orion/<project>/scratch", "/lustre/orion/abc/scratch/me", 7),
        ("/lustre/orion/<project>/scratch", "/lustre/orion/abc/proj/me", None),
        ("/scratch/<root>_root", "/scratch/ab_root/x", 7),
        ("a workspace (ws_allocate) that expires", "/work/x", None),
    ],
)
def test_what_lies_on_scratch(form: str, path: str, days: int | None) -> None:
    assert run_root.purge_days(Path(path), Profile("c", scratch=Scratch(form, 7))) == days


def test_what_a_run_reads_and_would_be_gone(tmp_path: Path) -> None:
    profile = Profile("c", scratch=Scratch(str(tmp_path), 30))
    for name, days in (("model", 27), ("data", 3)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
        os.utime(tmp_path / name / "file", (time.time() - days * DAY,) * 2)
    folders = [str(tmp_path / "model"), str(tmp_path / "data" / "file"), "/usr/lib"]
    told = f"{tmp_path}/model expires in 3 days: c removes what nobody reads for 30 days"
    assert run_root.expiring(folders, profile) == [told]
