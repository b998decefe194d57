"""What an attempt's end is called beyond exit codes, and the line that people read of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from durable import append_line
from slurm.causes import ends
from slurm.causes.cause import attempt_cause
from slurm.rundir import RunDir
from tests.slurm.conftest import Start, causes

NCCL = "[Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7, OpType=ALLREDUCE) ran for 600001 milliseconds"


@pytest.mark.parametrize(
    ("words", "end", "cause"),
    [
        (NCCL, "os.abort()", "hang"),
        (NCCL + "\\n" + "frame\\n" * 20_000, "os.abort()", "hang"),  # its stacks come after the words
        (NCCL, "sys.exit(134)", "hang"),  # a shell's word for it
        ("free(): invalid pointer", "os.abort()", "crash"),
        (NCCL, "sys.exit(1)", "crash"),  # printed by a program that went on
    ],
)
def test_an_abort_of_nccls_watchdog_is_a_hang(run: RunDir, start: Start, words: str, end: str, cause: str) -> None:
    program = f"""
    import os, sys
    if os.environ["OUTLAST_ATTEMPT"] == "1":
        print("{words}", flush=True)
        {end}
    """
    assert start(program).wait(120) == 0
    assert causes(run) == [cause, "done"]
    told = "NCCL's watchdog ended it; its record in logs/attempt-0001/nccl-rank-*" in run.attempts()[0]["reason"]
    assert told is (cause == "hang")


def ended(run: RunDir, *codes: int, **event: object) -> list[ends.RankExit]:
    run.attempt_dir(2).mkdir(parents=True)
    for rank, code in enumerate(codes):
        record = {"rank": rank, "code": code, "signal": None, "host": "n1", "time": 10.0 - rank}
        (run.attempt_dir(2) / f"rank-{rank:04d}.exit").write_text(json.dumps(record))
    append_line(run.events, {"epoch": 1, **event})  # an earlier attempt's
    append_line(run.events, {"epoch": 2, **event})
    return ends.read_ends(run, 2, len(codes))


def test_an_end_that_no_listing_shows_yet_is_read_by_its_name(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """As NFS may, for half a minute after another node has written it."""
    monkeypatch.setattr(Path, "glob", lambda folder, pattern: iter(()))
    assert [end.code for end in ended(run, 75, 75, event="start")] == [75, 75]


def test_a_hangs_reason_names_the_ranks_that_are_missed(run: RunDir) -> None:
    exits = ended(run, 86, 86, 86, event="hang", phase="step", seconds=301.2, missing=[3], behind=[1, 2])
    assert attempt_cause(exits, None, None) == "hang"
    assert ends.failure(run, 2, "hang", exits) == (
        "rank 2: exit 86: no sign of life for 301 s in the phase step; stacks in logs/attempt-0002/rank-*.stacks;"
        " without stacks: ranks 3; fewer collectives than others: ranks 1, 2; see logs/attempt-0002"
    )


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_what_took_the_memory_and_what_would_take_less(run: RunDir, device: str) -> None:
    told = {"held": "weights 10.0 GB, activations and more 60.0 GB", "advice": "train.x=1 would save about 9.0 GB"}
    values = {"phase": "step", "device": device, "allocated": 70e9, "reserved": 75e9, **told}
    exits = ended(run, 1, 1, 1, event="oom", rank=0, **values)
    said = ends.failure(run, 2, "oom", exits)
    assert told["held"] in said and told["advice"] in said


@pytest.mark.parametrize(
    ("device", "advice"),
    [
        ("cuda", "no GPU memory was left in the phase step (70.0 GB allocated, 75.0 GB reserved): lower train.micro"),
        ("cpu", "no memory was left in the phase step (it held 70.0 GB): ask for more (--mem)"),
    ],
)
def test_what_the_trainer_told_of_its_memory(run: RunDir, device: str, advice: str) -> None:
    exits = ended(run, 1, 1, 1, event="oom", rank=0, phase="step", device=device, allocated=70e9, reserved=75e9)
    assert attempt_cause(exits, None, None) == "oom"
    assert ends.failure(run, 2, "oom", exits).startswith(f"rank 0: exit 1: {advice}")
