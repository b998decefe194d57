"""What lies on a node's own disk: caches, and an environment that is unpacked there."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from settings import ConfigError
from slurm import packing
from slurm.config import JobConfig, check_launcher, make_job
from slurm.environment import CACHES
from slurm.node import node_local, packed
from slurm.rundir import RunDir
from tests.slurm.conftest import Start, causes

UID = os.getuid()


def archive_with(folder: Path, name: str, **files: str) -> Path:
    source = folder / f"of-{name}"
    for path, text in files.items():
        (source / "bin").mkdir(parents=True, exist_ok=True)
        (source / "bin" / path).write_text(text)
        (source / "bin" / path).chmod(0o755)
    subprocess.run(["tar", "-cf", folder / name, "-C", source, "."], check=True)
    return folder / name


def test_caches_are_for_this_user_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NODE_DISK", str(tmp_path))
    found = node_local.caches("$NODE_DISK", {"TRITON_CACHE_DIR": "mine"})
    ours = tmp_path / f"outlast-{UID}"
    assert found == {name: str(ours / below) for name, below in CACHES.items() if name != "TRITON_CACHE_DIR"}
    assert ours.stat().st_mode & 0o777 == 0o700
    ours.rmdir()
    ours.symlink_to(tmp_path / "theirs")  # what is loaded as code lies in no place that another has made
    assert node_local.caches("$NODE_DISK", {}) == {}
    assert node_local.path_of("$NOBODY_SETS_THIS/x") == Path(f"/tmp/outlast-{UID}")


def test_an_environment_is_unpacked_once_and_goes_when_nobody_runs_from_it(tmp_path: Path) -> None:
    archive, disk = archive_with(tmp_path, "env.tar", python="#!/bin/sh\n"), tmp_path / "disk"
    disk.mkdir()
    place = packed.place_of(archive, str(disk))
    sent = Path(f"{place}.tar")
    assert not packed.unpack(sent, place)  # not there: it is to be sent
    sent.write_bytes(archive.read_bytes())
    half = place.with_name(f".{place.name}-12345678")
    half.mkdir()
    assert packed.unpack(sent, place) and (place / "bin" / "python").is_file()
    assert not sent.exists() and not half.exists()
    (place / "mark").touch()
    with Path(f"{place}.lock").open() as rank:  # of another job on this node, which runs for days
        fcntl.flock(rank, fcntl.LOCK_SH)
        assert packed.unpack(sent, place) and (place / "mark").exists()  # the next attempt's

    newer = packed.place_of(archive_with(tmp_path, "new.tar", python="#!/bin/sh\n# new\n"), str(disk))
    assert newer != place
    lock = Path(f"{place}.lock")
    assert packed.unpack(tmp_path / "new.tar", newer) and place.is_dir()  # it was unpacked just now, for ranks to come
    os.utime(lock, (0, 0))
    with lock.open() as rank:  # runs from it
        fcntl.flock(rank, fcntl.LOCK_SH)
        assert packed.unpack(tmp_path / "new.tar", newer) and place.is_dir()
    assert packed.unpack(tmp_path / "new.tar", newer) and not place.exists() and newer.is_dir()
    assert (tmp_path / "new.tar").exists()  # what was not sent there is the user's


def test_what_conda_has_packed_is_mended_where_it_lies(tmp_path: Path) -> None:
    """conda-pack's archives bring a program along that puts their new folder into their files."""
    program = 'echo "$0" > "$(dirname "$0")/mended"\n'
    archive = archive_with(tmp_path, "c.tar", **{"python": '#!/bin/sh\nexec sh "$@"\n', "conda-unpack": program})
    place = packed.place_of(archive, str(tmp_path))
    assert packed.unpack(archive, place) and (place / "bin" / "mended").exists()


def test_a_broken_archive_leaves_nothing(tmp_path: Path) -> None:
    archive = tmp_path / "env.tar"
    archive.write_text("no archive")
    place = packed.place_of(archive, str(tmp_path))
    with pytest.raises(subprocess.CalledProcessError):
        packed.unpack(archive, place)
    assert not place.exists()


def test_without_its_environment_no_rank_starts(tmp_path: Path, run: RunDir, start: Start) -> None:
    """Somebody else has made the node's folder for us, with a Python in it that would run as us."""
    disk, archive = tmp_path / "disk", archive_with(tmp_path, "env.tar", python="#!/bin/sh\n")
    place = packed.place_of(archive, str(disk))
    (place / "bin").mkdir(parents=True)
    (place / "bin" / "python").write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    (place / "bin" / "python").chmod(0o755)
    place.parent.rename(tmp_path / "theirs")
    place.parent.symlink_to(tmp_path / "theirs")
    process = start("pass", archive=str(archive), node_local=str(disk), command=None, max_attempts=1)
    assert process.wait(120) != 0
    assert causes(run) == ["crash"] and not (tmp_path / "started").exists()


def test_what_a_job_says_of_its_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUR_SCRATCH", str(tmp_path))
    job = make_job({"name": "x", "archive": "$OUR_SCRATCH/env.tar"}, "sft.yaml")
    assert job.archive == f"{tmp_path}/env.tar"
    with pytest.raises(ConfigError, match=r"env.tar: there is no such file: launch.py prepare RECIPE packs this"):
        check_launcher(job)
    with pytest.raises(ConfigError, match=r"archive=\$NOT_SET/e: NOT_SET is not set in this shell"):
        make_job({"name": "x", "archive": "$NOT_SET/e"}, "sft.yaml")
    with pytest.raises(ConfigError, match="archive and rank_command both say where the ranks' software is: take one"):
        make_job({"name": "x", "archive": "e", "rank_command": ["apptainer"]}, "sft.yaml")
    assert JobConfig("x").archive is None


def test_what_can_be_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (theirs := tmp_path / "theirs.tar").touch()
    assert packing.pack(theirs) == f"{theirs}: was not made by this command, and stays as it is"
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    monkeypatch.setattr(sys, "prefix", str(venv))
    archive = tmp_path / "on" / "scratch" / "env.tar.gz"
    assert f"{archive}: {venv} in " in packing.pack(archive)
    assert packing.pack(archive) == f"{archive}: packed already, and {venv} has not changed"
    [site] = venv.glob("lib/python*/site-packages")
    (site / "new-1.0.dist-info").mkdir()
    assert "packed in" in packing.pack(archive)
    assert [path.name for path in archive.parent.iterdir()].count("env.tar.gz") == 1
    assert len(list(archive.parent.iterdir())) == 2
    code = "import sys; sys.exit(sys.prefix == sys.base_prefix or 5)"
    assert packing.prove(archive, ["-c", code], dict(os.environ)) == 5
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    with pytest.raises(ConfigError, match="is no virtual environment: conda-pack -o"):
        packing.pack(tmp_path / "env.tar")
