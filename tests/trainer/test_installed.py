from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch

from trainer import claims, installed


def test_an_upgrade_between_two_attempts_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        claims.claim(tmp_path)
    assert installed.note(tmp_path, 1) == [] == installed.note(tmp_path, 2)
    written = json.loads((tmp_path / "claims" / "0001.json").read_text())
    ours = written["software"]
    assert written["epoch"] == 1 and ours["torch"] == torch.__version__ and ours["prefix"] == sys.prefix
    assert {"numpy", "transformers", "safetensors"} <= ours["packages"].keys()

    packages = {**ours["packages"], "numpy": "0.1", "new": "1"}
    other = {**ours, "driver": {"nvidia": "580.65"}, "packages": packages, "prefix": "/another/node"}
    monkeypatch.setattr(installed, "found", lambda: other)
    changed = installed.note(tmp_path, claims.claim(tmp_path))
    assert changed == ["driver.nvidia None -> 580.65", f"numpy {ours['packages']['numpy']} -> 0.1", "new None -> 1"]
    assert installed.told(changed).endswith("first attempt: " + ", ".join(changed))
    assert installed.told([f"p{n} 1 -> 2" for n in range(20)]).endswith("p7 1 -> 2 and 12 more")


def test_a_folder_that_may_not_be_read_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Python does, where PYTHONPATH names a home that its owner has closed since."""

    def closed(folder: str) -> list[str]:
        if folder == "/home/colleague":
            raise PermissionError(13, "Permission denied", folder)
        return listed(folder)

    listed = os.listdir
    monkeypatch.setattr(os, "listdir", closed)
    monkeypatch.setattr(sys, "path", ["/home/colleague", "/nowhere", *sys.path])
    assert installed.found()["packages"]["pytest"]
