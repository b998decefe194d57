"""What a node's memory keeps of a save: the next attempt finishes what was cut, and reads from it, or does without."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from slurm.node import node_memory
from tests.trainer.ranks import Run, Zygote, write_run
from tests.waiting import wait_until

NewRun = Callable[..., Run]
SHAPE = {"train": {"steps": 24}, "checkpoint": {"every": 10}}
FINISHED = "finished the save of step 10 that was cut"


@pytest.fixture(scope="module")
def sha256(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of the run that nobody interrupts."""
    whole = write_run(tmp_path_factory.mktemp("whole") / "run", zygote, **SHAPE)
    assert whole.go(2) == [0, 0], whole.log()
    return str(whole.done()["sha256"])


@pytest.fixture
def cut(new_run: NewRun, tmp_path: Path) -> Run:
    """A run whose ranks were killed when all of step 10 was staged, and nothing of it durable."""
    run = new_run("run", **SHAPE)
    run.start_with_fault(2, "durable", "all", "wait", OUTLAST_NODE_MEMORY=str(tmp_path / "memory"))
    wait_until(lambda: len(list((tmp_path / "memory").glob("0001-*.json"))) == 2, run.log())
    run.kill()
    assert run.checkpoints() == []
    return run


def flip(file: Path, byte: int) -> None:
    data = bytearray(file.read_bytes())
    data[byte] ^= 1
    file.write_bytes(data)


def go(run: Run, memory: Path, world: int = 2) -> None:
    assert run.go(world, OUTLAST_NODE_MEMORY=str(memory)) == [0] * world, run.log()


def test_a_save_that_was_cut_is_finished(cut: Run, tmp_path: Path, sha256: str) -> None:
    go(cut, tmp_path / "memory")
    assert FINISHED in cut.log() and "resumed from step-00000010-e0001" in cut.log()
    assert cut.done()["sha256"] == sha256
    assert not list((tmp_path / "memory").glob("0001-*"))
    assert (tmp_path / "memory").stat().st_mode & 0o777 == 0o700


def test_it_reads_the_nodes_memory_and_not_the_disk(cut: Run, tmp_path: Path, sha256: str) -> None:
    """The disk's copy is broken in the first attempt that looks at it, and nobody notices."""
    memory = tmp_path / "memory"
    cut.start_with_fault(2, "load", 0, "wait", OUTLAST_NODE_MEMORY=str(memory))
    cut.reaches_fault()
    for file in (cut.path / "checkpoints" / "step-00000010-e0001").glob("*.safetensors"):
        flip(file, file.stat().st_size // 2)
    cut.go_on()
    assert cut.wait() == [0, 0], cut.log()
    assert "resumed from step-00000010-e0001" in cut.log() and cut.done()["sha256"] == sha256


def test_a_wrong_bit_in_memory_is_read_from_the_disk(cut: Run, tmp_path: Path, sha256: str) -> None:
    memory = tmp_path / "memory"
    cut.start_with_fault(2, "load", 0, "wait", OUTLAST_NODE_MEMORY=str(memory))
    cut.reaches_fault()
    for file in memory.glob("0001-*.safetensors"):
        flip(file, file.stat().st_size // 2)
    cut.go_on()
    assert cut.wait() == [0, 0], cut.log()
    assert "resumed from step-00000010-e0001" in cut.log() and cut.done()["sha256"] == sha256


@pytest.mark.parametrize("missing", ["a record", "a bit", "a rank", "the run"])
def test_what_is_not_whole_is_not_finished(cut: Run, tmp_path: Path, sha256: str, missing: str) -> None:
    memory, world = tmp_path / "memory", 2
    record, kept = memory / "0001-rank-0001.json", memory / "0001-rank-0001.safetensors"
    if missing == "a record":
        record.unlink()
    elif missing == "a bit":
        flip(kept, kept.stat().st_size - 1)
    elif missing == "a rank":
        world = 1
    else:  # another one had this folder before
        record.write_text(json.dumps({**json.loads(record.read_text()), "born": 1.0}))
    go(cut, memory, world)
    assert FINISHED not in cut.log() and " starts at step 0 " in f" {cut.log()}".replace("\n", " ")
    assert ("what was staged of rank-0001.safetensors is not whole any more" in cut.log()) == (missing == "a bit")
    assert world == 1 or cut.done()["sha256"] == sha256


def test_what_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_memory, "ROOT", tmp_path)
    run = Path("/runs/a")
    folder = node_memory.folder(run)
    assert folder != node_memory.folder(Path("/other/a"))
    node_memory.forget(run)  # nothing is there
    folder.mkdir()
    for name in ("0001-rank-0000.safetensors", "0002-rank-0000.json", "0002-rank-0010.json"):
        (folder / name).touch()
    node_memory.forget(run, [0])
    assert [path.name for path in folder.iterdir()] == ["0002-rank-0010.json"]
    node_memory.forget(run)
    assert not folder.exists()
