"""What a run takes down of itself: claims of one attempt each, and lines of events."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from trainer import claims
from trainer.records import events
from trainer.records.events import Events


def test_of_many_that_start_at_once_each_has_a_claim_of_its_own(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as several:
        won = list(several.map(lambda _: claims.claim(tmp_path), range(40)))
    assert sorted(won) == claims.epochs(tmp_path) == list(range(1, 41))


def test_a_claim_whose_writer_died_counts_and_says_nothing(tmp_path: Path) -> None:
    claims.claim(tmp_path)
    (tmp_path / "claims" / "0002.json").touch()
    assert claims.fenced(tmp_path, 1) and claims.read(tmp_path, 2) == {} and claims.claim(tmp_path) == 3


def test_a_line_that_cannot_be_written_is_said_and_ends_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = Events(tmp_path, epoch=1, active=True)
    written.write("step", step=1)
    (tmp_path / events.NAME).rename(tmp_path / "moved")
    (tmp_path / events.NAME).mkdir()  # whoever it is, root too: nobody writes lines to a folder
    written.write("step", step=2)
    assert "the event step could not be written: [Errno 21] Is a directory" in capsys.readouterr().out
    assert events.last_hash(tmp_path) is None
    (tmp_path / events.NAME).rmdir()
    (tmp_path / "moved").rename(tmp_path / events.NAME)
    written.write("step", step=3)
    assert [line["step"] for line in events.read(tmp_path)] == [1, 3]
