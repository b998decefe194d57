"""The folders on a node's disk: the user's alone, apart for every run, attempt and rank, and gone at the end."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from settings import ConfigError
from trainer.engines.deepspeed.scratch import Scratch

RUN = Path("/runs/a run")


def scratch(disk: Path, epoch: int = 2, rank: int = 0, run: Path = RUN, **param: object) -> Scratch:
    zero = {"stage": 3, "offload_optimizer": {"device": "nvme", "nvme_path": str(disk), "buffer_count": 5}}
    if param:
        zero["offload_param"] = {"device": "nvme", "nvme_path": str(disk), **param}
    return Scratch(zero, run, epoch, rank)


def test_a_rank_has_folders_of_its_own_and_takes_nothing_else_away(tmp_path: Path) -> None:
    disk = tmp_path / "not there" / "yet"
    (tmp_path / "mine").touch()
    of_others = [scratch(disk, epoch=3), scratch(disk, rank=1), scratch(disk, epoch=1, run=Path("/runs/another"))]
    earlier, own = scratch(disk, epoch=1), scratch(disk)
    for one in (earlier, *of_others, own):
        one.make()
        for folder in one.folders.values():
            (folder / "x.swp").touch()
            made = [folder, *folder.parents][:3]  # up to what was there before
            assert [path.stat().st_mode & 0o777 for path in made] == [0o700] * 3
    assert not any(path.exists() for path in earlier.folders.values())
    settings = own.settings()
    assert settings["offload_optimizer"] == {
        "device": "nvme",
        "nvme_path": str(own.folders["offload_optimizer"]),
        "buffer_count": 5,
    }
    own.remove()
    assert not any(path.exists() for path in own.folders.values())
    assert all((path / "x.swp").exists() for one in of_others for path in one.folders.values())
    for one in of_others:
        one.remove()
    assert [path.name for path in (disk, *disk.iterdir())] == ["yet"]


def test_what_somebody_else_has_put_there_is_refused(tmp_path: Path) -> None:
    own = scratch(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    own.folders["offload_optimizer"].symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="somebody else made this folder: .*outlast-a run-"):
        own.make()


def test_a_disk_that_cannot_be_used_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        ConfigError,
        match=r"^engine.config: zero_optimization.offload_optimizer.nvme_path=.*/file on .* cannot be used: File exists",
    ):
        scratch(tmp_path / "file").make()
    opened = os.open

    def refuse(path: Path, flags: int, *more: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(22, "Invalid argument", str(path))
        return opened(path, flags, *more)

    with monkeypatch.context() as patch, pytest.raises(ConfigError, match="this file system knows no direct I/O"):
        patch.setattr(os, "open", refuse)
        scratch(tmp_path).make()


def test_room_is_counted_for_all_that_lies_on_one_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = scratch(tmp_path, buffer_size=100)
    both.make()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=17e9))
    both.check_room({"offload_optimizer": 14_000_000_000, "offload_param": 3_000_000_000})
    with pytest.raises(ConfigError) as error:
        both.check_room({"offload_optimizer": 16_000_000_000, "offload_param": 2_000_000_000})
    line = f"offload_optimizer and offload_param.nvme_path={tmp_path} on {os.uname().nodename} has 17.00 GB free, and this node's ranks need 18.00 GB there"
    assert line in str(error.value) and "\n" not in str(error.value)
    both.check_buffers(100)
    with pytest.raises(ConfigError, match="offload_param.buffer_size=100: .* has 101 elements: take 101"):
        both.check_buffers(101)
