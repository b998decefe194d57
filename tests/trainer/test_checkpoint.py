"""Checkpoints: read by every engine at every size, checked to the bit, never half there."""

from __future__ import annotations

import json
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from settings import ConfigError
from tests.trainer.checkpoints import write_file_of
from tests.trainer.ranks import Run
from tests.waiting import wait_until
from trainer.checkpoint import CheckpointBroken, Point
from trainer.checkpoint.format import (
    BLOCK,
    File,
    Manifest,
    Parameter,
    _self_hash,
    read_manifest,
    write_manifest,
)
from trainer.checkpoint.image import Image
from trainer.checkpoint.lineage import in_lineage
from trainer.checkpoint.load import Reader
from trainer.engines.shard import Shard

NewRun = Callable[..., Run]


def train_to_a_stop(run: Run, world: int) -> Path:
    """An attempt that is stopped within its steps. Returns the checkpoint that it left."""
    run.start(world)
    run.reaches(max((e["step"] for e in run.events("step")), default=0) + 2)
    run.signal(signal.SIGTERM, rank=0)
    assert run.wait() == [75] * world, run.log()
    return run.path / "checkpoints" / run.checkpoints()[-1]


def change_engine(run: Run, kind: str) -> None:
    path = run.path / "config.yaml"
    path.write_text(re.sub(r"kind: (ddp|fsdp)", f"kind: {kind}", path.read_text()))


@pytest.mark.parametrize(("first", "second"), [("ddp", "fsdp"), pytest.param("fsdp", "ddp", marks=pytest.mark.nightly)])
def test_another_engine_at_another_size_goes_on_bit_for_bit(new_run: NewRun, first: str, second: str) -> None:
    reference, run = new_run("reference", engine={"kind": first}), new_run("run", engine={"kind": first})
    assert reference.go(4) == [0] * 4
    checkpoint = train_to_a_stop(run, 4)
    for kind, world in ((second, 2), (second, 3), (first, 1)):
        change_engine(run, kind)
        check = ["tests.trainer.check_loaded", str(run.path / "config.yaml"), str(checkpoint)]
        assert run.go(world, argv=check) == [0] * world, run.log()
    change_engine(run, second)
    checkpoint = train_to_a_stop(run, 3)
    assert (
        "world_size 4 -> 3" in run.log()
        and f"engine {first} -> {second}" in run.log()
        and "not bit-identical" in run.log()
    )
    change_engine(run, first)
    assert run.go(2, argv=[*check[:2], str(checkpoint)]) == [0, 0], run.log()
    assert run.go(2) == [0, 0], run.log()
    assert run.history("hash", "tokens") == reference.history("hash", "tokens")  # the same samples in the same order


# --- faults ---------------------------------------------------------------------------------------------


def flip_a_bit(folder: Path) -> None:
    file = folder / "rank-0001.safetensors"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def cut_a_file(folder: Path) -> None:
    file = folder / "rank-0000.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def lose_a_file(folder: Path) -> None:
    (folder / "rank-0001.safetensors").unlink()


def swap_files(folder: Path) -> None:
    first, second = folder / "rank-0000.safetensors", folder / "rank-0001.safetensors"
    a, b = first.read_bytes(), second.read_bytes()
    first.write_bytes(b)
    second.write_bytes(a)


def edit_the_manifest(folder: Path) -> None:
    file = folder / "MANIFEST.json"
    file.write_text(file.read_text().replace('"tokens_seen": ', '"tokens_seen": 1'))


def tear_the_manifest(folder: Path) -> None:
    file = folder / "MANIFEST.json"
    file.write_text(file.read_text()[:-40])


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param([flip_a_bit, tear_the_manifest], id="some"),
        pytest.param([cut_a_file, lose_a_file, swap_files, edit_the_manifest], id="others", marks=pytest.mark.nightly),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_and_it_is_said(
    new_run: NewRun, faults: list[Callable[[Path], None]]
) -> None:
    whole, cut = new_run("whole"), new_run("cut")
    assert whole.go(2) == [0, 0]
    older = train_to_a_stop(cut, 2)
    damaged = train_to_a_stop(cut, 2)
    assert older != damaged
    for fault in faults:
        run = cut.copy(fault.__name__)
        fault(run.path / "checkpoints" / damaged.name)
        assert run.go(2) == [0, 0], run.log()
        assert f"passed over a checkpoint that does not verify: {damaged.name}" in run.log()
        assert run.events("resume")[-1]["from"] == older.name
        assert run.done()["sha256"] == whole.done()["sha256"]
        assert run.history("loss") == whole.history("loss")


def test_checkpoints_that_all_fail_never_mean_step_0(new_run: NewRun) -> None:
    run = new_run("run")
    flip_a_bit(train_to_a_stop(run, 2))
    for _ in range(2):  # also when they were put aside before
        assert run.go(2) == [78, 78]
        assert "does not start again at step 0 by itself" in run.log()
    assert len(run.events("resume")) == 1


@pytest.mark.parametrize("loss", ["manifest", "folder"])
def test_checkpoints_that_are_gone_never_mean_step_0(new_run: NewRun, loss: str) -> None:
    run = new_run("run")
    train_to_a_stop(run, 2)
    checkpoint = train_to_a_stop(run, 2)
    for folder in checkpoint.parent.glob("step-*"):
        if loss == "manifest":
            (folder / "MANIFEST.json").unlink()
        else:
            shutil.rmtree(folder)
    assert run.go(2) == [78, 78]
    assert "does not start again at step 0 by itself" in run.log()


def test_a_kill_in_the_middle_of_a_save_leaves_the_last_one(new_run: NewRun) -> None:
    whole, run = new_run("whole"), new_run("run")
    assert whole.go(2) == [0, 0]
    train_to_a_stop(run, 2)
    half = run.path / "checkpoints" / ".tmp-00000099-e0001-abcd"
    half.mkdir()
    (half / "rank-0000.safetensors").write_bytes(b"half")
    uncommitted = run.path / "checkpoints" / "step-00000099-e0001"
    uncommitted.mkdir()  # no manifest: it does not exist
    assert run.go(2) == [0, 0], run.log()
    assert not half.exists()
    assert run.done()["sha256"] == whole.done()["sha256"]


def test_a_file_system_that_refuses_a_save_costs_a_checkpoint_and_not_the_run(new_run: NewRun) -> None:
    """Ranks that may write only small files, as under a quota: the save fails with EFBIG and is said."""
    run = new_run("run", checkpoint={"every": 20}, export=False)
    check = ["tests.trainer.with_small_files", str(run.path / "config.yaml")]
    run.start(2, argv=check)
    wait_until(lambda: run.events("save_failed"), run.log())
    run.reaches(25)
    assert "File too large" in run.events("save_failed")[0]["error"]
    assert run.wait() == [1, 1]  # the last state could not be kept either: that is no success
    assert run.checkpoints() == [] and not list((run.path / "checkpoints").glob(".tmp-*"))
    assert run.go(2) == [0, 0], run.log()


# --- fencing --------------------------------------------------------------------------------------------


def test_an_attempt_that_is_not_the_newest_commits_nothing(new_run: NewRun) -> None:
    run = new_run("run", train={"steps": 2000}, checkpoint={"every": 2000})
    run.start(2)
    run.reaches(3)
    (run.path / "claims" / "0002.json").write_text('{"epoch": 2}')
    run.signal(signal.SIGUSR1, rank=1)
    assert run.wait() == [76, 76], run.log()
    assert run.checkpoints() == [] and "fenced: a later attempt owns the run" in run.log()


def test_what_a_zombie_saved_after_the_next_resumed_does_not_count() -> None:
    resumed = {1: Point(0, 0), 2: Point(20, 1), 4: Point(20, 1)}
    points = [Point(20, 1), Point(30, 1), Point(10, 1), Point(40, 2), Point(25, 4)]
    assert in_lineage(points, resumed) == [Point(25, 4), Point(20, 1), Point(10, 1)]


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 3)), max_size=12))
def test_the_newest_of_the_line_is_the_last_that_was_committed(history: list[tuple[int, int]]) -> None:
    """Attempts that each resume from the newest of the line, do some steps, and save or die."""
    points: list[Point] = []
    resumed: dict[int, Point] = {}
    line: list[Point] = []
    for epoch, (steps, saves) in enumerate(history, 1):
        resumed[epoch] = line[-1] if line else Point(0, 0)
        for number in range(saves):
            line.append(Point(resumed[epoch].step + steps * (number + 1), epoch))
            points.append(line[-1])
        assert in_lineage(points, resumed)[:1] == line[-1:]


# --- the format -----------------------------------------------------------------------------------------


COUNT = torch.tensor(7.0)


def manifest(files: list, parameters: dict[str, Parameter]) -> Manifest:
    return Manifest(1, 7, 1, {"world_size": len(files)}, {"a": 1.5}, "f", {"tokens_seen": 3}, BLOCK, parameters, files)


@given(data=st.data(), size=st.integers(1, 3000), writers=st.integers(1, 5))
def test_any_range_is_read_from_any_number_of_writers(tmp_path_factory, data, size: int, writers: int) -> None:
    folder = tmp_path_factory.mktemp("step")
    values = {
        kind: np.arange(size, dtype=np.float32) + i for i, kind in enumerate(("weights", "exp_avg", "exp_avg_sq"))
    }
    cuts = sorted(data.draw(st.lists(st.integers(0, size), min_size=writers - 1, max_size=writers - 1)))
    files = []
    for rank, (start, stop) in enumerate(zip([0, *cuts], [*cuts, size], strict=True)):
        kept = {kind: torch.from_numpy(array[start:stop]) for kind, array in values.items()}
        image = Image([Shard("p", (size,), start, stop, kept, COUNT)], (0, 1), {"rng/torch": np.zeros(8, np.uint8)})
        files.append(write_file_of(folder, rank, image, data.draw(st.sampled_from([None, 24]))))
    write_manifest(folder, manifest(files, {"p": Parameter([size], 7)}))
    low = data.draw(st.integers(0, size))
    high = data.draw(st.integers(low, size))
    with Reader(folder) as reader:
        for kind, array in values.items():
            assert reader.read("p", kind, low, high).tobytes() == array[low:high].tobytes()
        with pytest.raises(CheckpointBroken):
            reader.read("p", "weights", 0, size + 1)
        with pytest.raises(CheckpointBroken):
            reader.read("gone", "weights", 0, 1)


def test_every_single_bit_counts(tmp_path: Path) -> None:
    """Blocks smaller than the file: the block that is hit is named, and what lies in others is still read."""
    values = np.random.default_rng(0).normal(size=3 * BLOCK // 4).astype(np.float32)  # 3 MiB
    shard = Shard("p", values.shape, 0, len(values), {"weights": torch.from_numpy(values)}, COUNT)
    file = write_file_of(tmp_path, 0, Image([shard], (0, 1), {}))
    write_manifest(tmp_path, manifest([file], {"p": Parameter([len(values)], 7)}))
    path = tmp_path / file.name
    whole = bytearray(path.read_bytes())
    for bit in np.random.default_rng(1).integers(0, 8 * len(whole), 40):
        whole[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(whole)
        with Reader(tmp_path) as reader, pytest.raises(CheckpointBroken, match=f"block {bit // 8 // BLOCK} "):
            block = int(bit // 8 // BLOCK)
            reader._files[0].read(block * BLOCK, memoryview(bytearray(min(BLOCK, len(whole) - block * BLOCK))))
        whole[bit // 8] ^= 1 << (bit % 8)


def test_a_flipped_bit_that_changes_no_value_counts_too(tmp_path: Path) -> None:
    write_manifest(tmp_path, Manifest(1, 7, 1, {}, {"lr": 1e-05}, "f", {}, BLOCK, {}, []))
    file = tmp_path / "MANIFEST.json"
    assert read_manifest(tmp_path).config == {"lr": 1e-05}
    file.write_text(file.read_text().replace("1e-05", "1E-05"))
    with pytest.raises(CheckpointBroken, match="was changed: it is not what was written"):
        read_manifest(tmp_path)


def test_a_later_version_is_refused_in_one_line(tmp_path: Path) -> None:
    write_manifest(tmp_path, manifest([], {}))
    file = tmp_path / "MANIFEST.json"
    later = {**json.loads(file.read_text()), "version": 2}
    del later["hash"]
    file.write_text(json.dumps({**later, "hash": _self_hash(later)}))
    with pytest.raises(ConfigError, match="has format version 2, newer than this Outlast reads"):
        read_manifest(tmp_path)


def test_a_manifest_names_no_file_outside_its_folder(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"x")
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    write_manifest(folder, manifest([File("../secret", 1, [], [], {})], {}))
    with pytest.raises(CheckpointBroken, match="names a file elsewhere: ../secret"):
        read_manifest(folder)
