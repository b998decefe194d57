"""What an attacker tries and no other test holds; docs/security.md lists them all, and where each is held."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

import launch
from durable import make_own, write_atomic
from envs.pocket import roots
from settings import ConfigError, parse_yaml
from slurm import snapshot
from slurm.causes import logs
from slurm.sweeps import sweep
from tests.trainer.data.samples import texts, write_rows, write_tokenizer
from trainer import recipe
from trainer.data import prepare
from trainer.sources import Data

ROOT = Path(__file__).parent.parent
as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root may give a folder away")


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.getcwd []", "!!python/name:os.system", "!mine x"])
def test_yaml_makes_no_objects(tag: str) -> None:
    with pytest.raises(ConfigError, match=r"recipe.yaml line 1: not YAML: could not determine a constructor"):
        parse_yaml(f"name: {tag}", "recipe.yaml")


def test_a_folder_in_a_shared_place_is_our_own_or_refused(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "theirs")
    with pytest.raises(PermissionError, match="somebody else made this folder"):
        make_own(tmp_path / "link")
    (tmp_path / "open").mkdir(mode=0o777)
    make_own(tmp_path / "open")
    assert (tmp_path / "open").stat().st_mode & 0o777 == 0o700


@as_root
def test_a_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "given").mkdir()
    os.chown(tmp_path / "given", os.getuid() + 1, -1)
    with pytest.raises(PermissionError, match="somebody else made this folder"):
        make_own(tmp_path / "given")


def test_a_link_in_a_files_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("as it was")
    (tmp_path / "stop").symlink_to(tmp_path / "theirs")
    write_atomic(tmp_path / "stop", "enough")
    assert not (tmp_path / "stop").is_symlink() and (tmp_path / "stop").read_text() == "enough"
    assert (tmp_path / "theirs").read_text() == "as it was"


def test_the_run_of_another_user_starts_and_ends_nothing_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its job.yaml names programs and its code would be imported; its jobs.jsonl names jobs, perhaps ours."""
    monkeypatch.chdir(tmp_path)
    theirs = tmp_path / "runs" / "theirs"
    theirs.mkdir(parents=True)
    (theirs / "job.yaml").write_text(f"name: theirs\nrank_python: {tmp_path}/program\n")
    (tmp_path / "program").write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    (tmp_path / "program").chmod(0o755)
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    for verb in ("evaluate", "export", "stop"):
        words = ["--data", "test.jsonl"] if verb == "evaluate" else []
        assert launch.main([verb, "theirs", *words]) == 78
        assert f"{theirs} belongs to another user" in capsys.readouterr().err
        assert launch.main([verb, *words]) == 78  # the newest is not theirs
        assert "there is no run of yours in runs" in capsys.readouterr().err
    assert not (tmp_path / "started").exists() and not (theirs / "CANCELLED").exists()


def test_a_sweeps_folder_of_another_user_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x-sweep").mkdir()
    (tmp_path / "x-sweep" / "sweep.json").write_text('{"sent": [], "runs": []}')
    assert sweep.opened(tmp_path, "x-sweep").entries() == []
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(ConfigError, match="x-sweep belongs to another user"):
        sweep.opened(tmp_path, "x-sweep")


@as_root
def test_a_pocket_that_somebody_else_has_put_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its slurm.conf would be ours, and Slurm's commands load what that names."""
    monkeypatch.setenv("OUTLAST_POCKET_DIR", str(tmp_path / "p"))
    (tmp_path / "p" / "pocket").mkdir(parents=True)
    (tmp_path / "p" / "pocket" / "pocket.json").write_text("{}")
    assert roots.stands()
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    os.chown(tmp_path / "p", 4321, -1)
    assert not roots.stands()
    os.chown(tmp_path / "p", 12345, -1)
    os.chown(tmp_path / "p" / "pocket", 12345, -1)
    assert roots.stands()
    (tmp_path / "p" / "pocket").rename(tmp_path / "there")
    (tmp_path / "p" / "pocket").symlink_to(tmp_path / "there")
    assert not roots.stands()


@as_root
def test_half_prepared_data_of_another_user_is_not_written_to(tmp_path: Path) -> None:
    """A link in it would lead what we write to a file of ours, at a place that they choose."""
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    data = Data(train=[write_rows(tmp_path / "rows.jsonl", texts(20))], seq_len=16)
    source = data.sources["train"]
    name = prepare.fingerprint(source, data.cut_for(source), tokenizer, tmp_path / "cache")
    part, mine = tmp_path / "cache" / f".part-{name}", tmp_path / "mine"
    mine.write_text("as it was")
    for given in (True, False):
        part.mkdir(parents=True)
        (part / "rejects.jsonl").symlink_to(mine)
        if given:
            os.chown(part, 4321, -1)
        with pytest.raises((ConfigError, OSError), match="another user's" if given else "symbolic link"):
            prepare.prepare(data, tokenizer, tmp_path / "cache", "train")
        assert mine.read_text() == "as it was"
        shutil.rmtree(part, ignore_errors=True)
    prepare.prepare(data, tokenizer, tmp_path / ".prepared", "train")
    assert (tmp_path / ".prepared").stat().st_mode & 0o777 == 0o700  # it spells out the data of a private run


def test_a_fork_writes_nothing_where_the_other_run_had_its_data(tmp_path: Path) -> None:
    (tmp_path / "theirs" / "checkpoints" / "step-1").mkdir(parents=True)
    (tmp_path / "theirs" / "config.yaml").write_text("name: theirs\ndata: {train: [a], cache: /tmp/theirs}\n")
    (tmp_path / "theirs" / "job.yaml").write_text("nodes: 1\n")
    assert recipe.forked(tmp_path / "theirs" / "checkpoints" / "step-1")["data"] == {"train": ["a"]}


def test_what_is_private_stays_so_in_a_copy_for_a_group(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    for name, mode in (("train.py", 0o755), (".env", 0o600), ("read-only", 0o444)):
        (tmp_path / "code" / name).write_text("x")
        (tmp_path / "code" / name).chmod(mode)
    (tmp_path / "run").mkdir()
    before = os.umask(0o027)
    try:
        files = [Path(name) for name in ("train.py", ".env", "read-only")]
        snapshot.copy_command(snapshot.CommandCode(tmp_path / "code", files), tmp_path / "run" / "code")
    finally:
        os.umask(before)
    copied = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert {name: copied[name] for name in ("train.py", ".env", "read-only")} == {
        "train.py": 0o750,
        ".env": 0o600,
        "read-only": 0o640,
    }


def test_a_terminal_obeys_no_log() -> None:
    evil = "\x1b]52;c;aGk=\x07 \x1b[2J \x1b[31mred\x1b[0m a\tb\n\x9b1A"
    assert logs.printable(evil) == "\u241b]52;c;aGk=\u241b \u241b[2J \x1b[31mred\x1b[0m a\tb\n\u241b1A"


def test_each_row_of_the_page_names_a_test_that_is_there() -> None:
    page = (ROOT / "docs" / "security.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| ") and "test" in line][1:]
    for row in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row)
        assert named and named == [
            (file, test) for file, test in named if f"def {test}(" in (ROOT / file).read_text()
        ], row
