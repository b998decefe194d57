"""What was doctored in events.jsonl is found; what a kill or two writers leave there is no fault."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from tests.trainer.report.lives import FIVE_CUTS, Life, Truth, write_run
from trainer.records import events
from trainer.records.events import Events
from trainer.report.findings import Proof
from trainer.report.proof import proof
from trainer.report.run import read


@pytest.fixture
def truth(tmp_path: Path) -> Truth:
    return write_run(tmp_path, FIVE_CUTS)


def proven(truth: Truth) -> Proof:
    return proof(read(truth.path))


def lines(truth: Truth) -> list[str]:
    return (truth.path / "events.jsonl").read_text().splitlines()


def doctored(truth: Truth, told: list[str]) -> dict[str, list[str]]:
    """The problems by kind."""
    (truth.path / "events.jsonl").write_text("\n".join(told) + "\n")
    found = proven(truth)
    assert found.ok is False and "problem" in found.verdict
    return {one.what: one.problems for one in found.findings if one.ok is False}


def at(told: list[str], epoch: int, step: int) -> int:
    """Index of a step's line."""
    events = [json.loads(line) for line in told]
    return next(i for i, e in enumerate(events) if (e["event"], e["epoch"], e["step"]) == ("step", epoch, step))


def test_a_whole_run_is_proven(truth: Truth) -> None:
    found = proven(truth)
    assert found.ok and found.verdict == "nothing was lost, and nothing was used twice"
    assert [one.text.partition(";")[0] for one in found.findings][0] == "each of 300 steps counts once, over 6 attempts"
    assert "26 that an interruption cut off were done again" in found.findings[0].text
    assert "300 steps, 1,800 samples: 12 whole passes" in found.findings[1].text


def test_a_step_twice(truth: Truth) -> None:
    told = lines(truth)
    found = doctored(truth, told[: (i := at(told, 5, 200)) + 1] + told[i:])
    assert found["Optimizer steps"] == ["step 200 was done 2 times (attempts 5, 5)"]
    assert len(found["Records"]) == 1 and f"line {i + 2} of events.jsonl: it does not follow" in found["Records"][0]


def test_a_sample_that_is_missing(truth: Truth) -> None:
    told = lines(truth)
    event = json.loads(told[i := at(told, 1, 33)])
    found = doctored(truth, [*told[:i], json.dumps({**event, "hash": event["hash"] - 12345}), *told[i + 1 :]])
    step, sums = found["Samples"]
    assert step.startswith("step 33: other samples than planned") and "do not sum up to it" in sums
    assert f"line {i + 2} of" in found["Records"][0]


def test_a_step_that_was_taken_out(truth: Truth) -> None:
    told = lines(truth)
    found = doctored(truth, told[: (i := at(told, 3, 100))] + told[i + 1 :])
    assert found["Optimizer steps"] == ["step 100 skipped: no attempt recorded it"] and len(found["Records"]) == 1


def test_an_edited_line_wherever_it_stands(truth: Truth) -> None:
    """The last one too: DONE has its hash."""
    told, draw = lines(truth), random.Random(1)
    for index in [0, len(told) - 1, *(draw.randrange(len(told)) for _ in range(20))]:
        changed = told[index].replace('"time": 17', '"time": 18', 1)
        assert list(doctored(truth, [*told[:index], changed, *told[index + 1 :]])) in (["Records"], ["Records"])


def test_what_a_kill_and_two_writers_leave_is_no_fault(truth: Truth) -> None:
    """A torn line, a zombie that goes on beside the next attempt, and a rank that tells of itself beside rank 0."""
    told = lines(truth)
    (truth.path / "DONE").unlink()
    (truth.path / "events.jsonl").write_text("\n".join(told[: at(told, 6, 290)]) + '\n{"event": "step", "ep')
    Events(truth.path, 6, True).write("oom", step=0, rank=3)
    zombie, rank0 = Events(truth.path, 5, True), Events(truth.path, 6, True)
    for step in range(290, 295):
        zombie.write("step", step=step, hash=1)
        rank0.write("stop", step=step)
    last = (truth.path / "events.jsonl").read_text().splitlines()
    crossed = [*last[:-2], last[-1], last[-2]]  # each has seen the same line before it, as on a slow file system
    head = events.line_hash(last[-3].encode())
    crossed[-2:] = [json.dumps({**json.loads(line), "chain": head}) for line in crossed[-2:]]
    (truth.path / "events.jsonl").write_text("\n".join(crossed) + "\n")
    found = proven(truth)
    assert found.ok, found
    assert "1 torn by a kill is dropped" in found.findings[2].text
    assert any("was torn by a kill: dropped" in note for note in found.notes)


def test_what_cannot_be_checked_is_said(tmp_path: Path) -> None:
    truth = write_run(tmp_path, [Life(0, 5, "done")])
    for file in (tmp_path / ".prepared").glob("*/*"):
        file.unlink()
    for folder in (tmp_path / ".prepared").glob("[0-9a-f]*"):
        folder.rmdir()
    found = proven(truth)
    assert found.ok is None and found.verdict == "nothing wrong was found; not checked: optimizer steps, samples"
    assert "is not prepared any more" in found.findings[0].text
    before = [json.dumps({k: v for k, v in json.loads(line).items() if k != "chain"}) for line in lines(truth)]
    (truth.path / "events.jsonl").write_text("\n".join(before) + "\n")
    (truth.path / "DONE").unlink()
    assert "carry no hashes" in proven(truth).findings[2].text
