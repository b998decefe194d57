"""The page of the case says what was recorded."""

from __future__ import annotations

import hashlib
import json
from typing import Any
from xml.etree import ElementTree

import pytest

from recipes.regulator import case, page


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    return dict(json.loads(page.RECORD.read_text()))


def test_the_page_has_the_results_of_the_record(record: dict[str, Any]) -> None:
    shown = page.PAGE.read_text().split(page.MARKS[0])[1].split(page.MARKS[1])[0]
    assert shown == page.results(record)


def test_the_picture_is_of_the_record() -> None:
    text = page.PICTURE.read_text()
    assert hashlib.sha256(page.RECORD.read_bytes()).hexdigest() in text and "currentColor" in text
    shown = {node.text for node in ElementTree.fromstring(text).iter("{http://www.w3.org/2000/svg}text")}
    assert {"full", "LoRA", "general text", "held-out task", "plain", "several"} <= shown


def test_both_methods_answered_the_same_rows_and_one_was_interrupted(record: dict[str, Any]) -> None:
    for seed in record["seeds"]:
        assert [run["method"] for run in seed["runs"]] == ["full", "LoRA r=32"]
        assert seed["data"]["rows"] == 1000
    assert any(cause != "done" for causes in record["causes"].values() for cause in causes)
    assert set(record["rates"]) == set(case.METHODS)


def test_what_ends_one_method_ends_both(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody hears of it after the other's hours."""

    def trained(place: case.Place, method: str, full: bool) -> None:
        if method == "lora":
            raise SystemExit("lora did not finish")
        assert place.left.wait(60)
        raise SystemExit("full goes on unwatched")

    monkeypatch.setattr(case, "trained", trained)
    with pytest.raises(SystemExit, match="lora did not finish"):
        case.side_by_side(case.Place(None))
