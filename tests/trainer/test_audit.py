from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from settings import ConfigError, dump_yaml
from tests.trainer.data.samples import prepare_texts
from trainer.audit import audit, main
from trainer.data.batches import Batches
from trainer.data.order import batch_indices
from trainer.data.prepared import Prepared, sequence_hash
from trainer.layout import BatchLayout

BATCH, SEED = 6, 5


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    config = {
        "name": "run",
        "model": {"config": {"model_type": "llama"}, "tokenizer": str(tmp_path / "tokenizer")},
        "data": {"train": [str(tmp_path / "train.jsonl")], "seq_len": 16},
        "train": {"global_batch_size": BATCH, "steps": 20, "seed": SEED},
        "optim": {"lr": 1e-3},
    }
    (run_dir / "config.yaml").write_text(dump_yaml(config))
    return prepare_texts(tmp_path)


def attempt(prepared: Prepared, epoch: int, first: int, last: int) -> list[dict[str, Any]]:
    """What a faithful attempt writes that resumes before step `first` and is killed after `last`."""
    batches = Batches(prepared, BatchLayout(BATCH, 1, 1), SEED, 0)
    steps = [
        {"event": "step", "epoch": epoch, "step": s, "hash": batches.get(s - 1).hash, "loss": 1.5}
        for s in range(first, last + 1)
    ]
    return [{"event": "resume", "epoch": epoch, "step": first - 1}, {"event": "save", "step": last}, *steps]


def write(tmp_path: Path, events: list[dict[str, Any]], torn: str = "") -> Path:
    run_dir = tmp_path / "run"
    lines = "".join(json.dumps(event) + "\n" for event in events)
    (run_dir / "events.jsonl").write_text(lines + torn)
    return run_dir


def test_a_faithful_run_with_overlapping_attempts_passes(
    tmp_path: Path, prepared: Prepared, capsys: pytest.CaptureFixture[str]
) -> None:
    events = attempt(prepared, 1, 1, 9) + attempt(prepared, 2, 7, 12)
    run_dir = write(tmp_path, events, torn='{"event": "step", "epo')
    assert main([str(run_dir)]) == 0
    n = prepared.sequences
    assert capsys.readouterr().out.splitlines() == [
        f"line {len(events) + 1} of events.jsonl was torn by a kill: dropped",
        "attempt 1: steps 7-9 dropped: a later attempt resumed before",
        f"12 steps, 72 samples: each used once (72 of {n} sequences, {n - 72} left for a next pass); "
        "none skipped, none twice",
    ]


def test_whole_passes_sum_up_to_the_data(tmp_path: Path, prepared: Prepared) -> None:
    n = prepared.sequences
    assert n % BATCH  # so that a pass ends with a step only after BATCH passes
    verdict = audit(write(tmp_path, attempt(prepared, 1, 1, n + 1)))
    assert verdict.ok
    assert verdict.summary == (
        f"{n + 1} steps, {(n + 1) * BATCH} samples: {BATCH} whole passes with each of {n} sequences once, "
        f"and {BATCH} of them in pass {BATCH + 1}; none skipped, none twice in a pass"
    )


def test_the_lines_of_a_zombie_do_not_count(tmp_path: Path, prepared: Prepared) -> None:
    """Attempt 1 goes on writing after 2 and 3 started; 3 resumed below 2."""
    zombie = attempt(prepared, 1, 6, 9)[2:]
    events = [*attempt(prepared, 1, 1, 5), *attempt(prepared, 2, 5, 8), *zombie, *attempt(prepared, 3, 3, 10)]
    assert audit(write(tmp_path, events)).ok


def problems(tmp_path: Path, events: list[dict[str, Any]]) -> list[str]:
    run_dir = write(tmp_path, events)
    assert main([str(run_dir)]) == 1
    return audit(run_dir).problems


def test_a_skipped_step(tmp_path: Path, prepared: Prepared) -> None:
    events = attempt(prepared, 1, 1, 5) + attempt(prepared, 2, 8, 9)
    assert problems(tmp_path, events) == ["steps 6-7 skipped: no attempt recorded it"]


def test_a_step_twice_in_the_lineage(tmp_path: Path, prepared: Prepared) -> None:
    events = attempt(prepared, 1, 1, 5) + attempt(prepared, 2, 6, 9) + attempt(prepared, 2, 5, 5)[2:]
    assert problems(tmp_path, events) == ["step 5 was done 2 times (attempts 1, 2)"]


def test_swapped_batches(tmp_path: Path, prepared: Prepared) -> None:
    events = attempt(prepared, 1, 1, 5)
    events[3]["hash"], events[5]["hash"] = events[5]["hash"], events[3]["hash"]
    assert problems(tmp_path, events) == [
        "step 2: other samples than planned: it used the samples of step 4",
        "step 4: other samples than planned: it used the samples of step 2",
    ]


def test_a_sample_in_place_of_another(tmp_path: Path, prepared: Prepared) -> None:
    planned, instead = (batch_indices(s, BATCH, prepared.sequences, SEED)[0] for s in (2, 9))
    events = attempt(prepared, 1, 1, 5)
    total = events[4]["hash"] - one(prepared, planned) + one(prepared, instead)
    events[4]["hash"] = (total + 2**63) % 2**64 - 2**63
    words = f"step 3: other samples than planned: sequence {instead} stood in place of sequence {planned}"
    assert problems(tmp_path, events) == [words]


def one(prepared: Prepared, sequence: int) -> int:
    read = prepared.sequence(sequence)
    return sequence_hash(read.documents[0], int(read.offsets[0]))


def test_a_wrong_order_is_seen_even_where_the_sampler_agrees(
    tmp_path: Path, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sampler that gives the first batch again and again would agree with itself."""
    broken = batch_indices(0, BATCH, prepared.sequences, SEED)
    monkeypatch.setattr("trainer.data.batches.batch_indices", lambda *_: broken)
    monkeypatch.setattr("trainer.audit.stream", lambda first, count, *_: np.resize(broken, count))
    last = prepared.sequences
    found = problems(tmp_path, attempt(prepared, 1, 1, last))
    assert any("times, but do not sum up to it" in problem for problem in found)
    assert any("sequences were used 0 to" in problem for problem in found)


def test_steps_are_counted_from_one(tmp_path: Path, prepared: Prepared) -> None:
    events = [{"event": "step", "epoch": 1, "step": 0, "hash": 1}, *attempt(prepared, 1, 1, 2)]
    assert problems(tmp_path, events) == ["line 1 of events.jsonl: step 0: steps are counted from 1"]


def test_no_step_is_no_proof(tmp_path: Path, prepared: Prepared) -> None:
    assert problems(tmp_path, []) == ["there is no finished step"]


def test_what_cannot_be_checked(tmp_path: Path, prepared: Prepared, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=r"events.jsonl: cannot be read: No such file or directory: nothing"):
        audit(tmp_path / "run")
    assert main([str(tmp_path / "nowhere")]) == main([]) == 78
