"""What an attacker tries and no other test holds; docs/security.md lists them all, and where each is held."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from durable import make_own, write_atomic
from settings import ConfigError, parse_yaml

ROOT = Path(__file__).parent.parent


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


@pytest.mark.skipif(os.getuid() != 0, reason="only root may give a folder away")
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


def test_each_row_of_the_page_names_a_test_that_is_there() -> None:
    page = (ROOT / "docs" / "security.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| ") and "test" in line][1:]
    for row in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row)
        assert named and named == [
            (file, test) for file, test in named if f"def {test}(" in (ROOT / file).read_text()
        ], row
