"""Which checkpoints stay: the last, one at each multiple, the best; and why."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from tests.trainer.ranks import Run
from trainer import claims
from trainer.checkpoint import Point, committed, folder_name
from trainer.checkpoint.format import BLOCK, Manifest, _self_hash, read_manifest, write_manifest
from trainer.checkpoint.retention import Retention, losses, put_aside, remove_leftovers, staying
from trainer.schema import Checkpoint

LOSSES = st.none() | st.floats(0, 20)
LINES = st.dictionaries(st.integers(1, 300).map(lambda step: Point(step, 1 + step // 100)), LOSSES, max_size=40)
SETTINGS = st.builds(
    Checkpoint, keep=st.integers(1, 5), keep_every=st.sampled_from([0, 1, 7, 50, 1000]), keep_best=st.integers(0, 4)
)


@given(LINES, SETTINGS)
def test_the_last_always_stay_and_nothing_stays_without_a_cause(
    line: dict[Point, float | None], settings: Checkpoint
) -> None:
    stays = staying(line, settings)
    points = sorted(line, reverse=True)
    assert set(points[: settings.keep]) <= set(stays) <= set(points)
    multiples = {point.step // settings.keep_every for point in points} - {0} if settings.keep_every else set()
    assert len(stays) <= settings.keep + len(multiples) + settings.keep_best
    assert all(any(cause in why for cause in ("last", "first", "best")) for why in stays.values())


@given(LINES, st.integers(1, 4))
def test_no_better_one_goes(line: dict[Point, float | None], best: int) -> None:
    chosen = [point for point, why in staying(line, Checkpoint(keep_best=best)).items() if "best" in why]
    worst = max((line[point] for point in chosen), default=0.0)
    known = [point for point, loss in line.items() if loss is not None]
    assert len(chosen) == min(best, len(known))
    assert all(line[point] >= worst for point in known if point not in chosen)


@given(LINES, SETTINGS)
def test_what_goes_one_by_one_is_what_would_go_at_the_end(
    line: dict[Point, float | None], settings: Checkpoint
) -> None:
    """A run removes after each save, and never sees again what it has removed: nothing that it needs later is gone."""
    left: dict[Point, float | None] = {}
    for point in sorted(line):
        left[point] = line[point]
        left = {point: left[point] for point in staying(left, settings)}
    assert left.keys() == staying(line, settings).keys()


def test_the_first_from_each_multiple_on() -> None:
    line = dict.fromkeys([Point(step, 1) for step in (90, 103, 150, 200, 250, 390)], None)
    stays = staying(line, Checkpoint(keep=2, keep_every=100))
    assert stays == {
        Point(103, 1): "first from step 100 on",
        Point(200, 1): "first from step 200 on",
        Point(250, 1): "last 2",
        Point(390, 1): "last 2, first from step 300 on",
    }


def save(checkpoints: Path, losses: dict[int, float | None]) -> list[Point]:
    """A manifest for each step, of the first attempt."""
    points = [Point(step, 1) for step in losses]
    for point, loss in zip(points, losses.values(), strict=True):
        (folder := checkpoints / folder_name(point)).mkdir(parents=True)
        write_manifest(folder, Manifest(1, point.step, 1, {}, {}, "", {}, BLOCK, {}, [], evaluation_loss=loss))
    return points


def test_losses_are_those_of_whole_manifests(tmp_path: Path) -> None:
    points = save(tmp_path, {10: 2.5, 20: None, 30: 1.5})
    (tmp_path / folder_name(points[2]) / "MANIFEST.json").write_text("{")
    assert losses(tmp_path, points) == {points[0]: 2.5, points[1]: None}


def test_only_the_newest_attempt_removes(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    save(folder, {10: 1.5, 20: 2.5, 30: None, 40: 1.6, 50: 1.7})
    first, second = (Retention(tmp_path, epoch, Checkpoint(keep=2, keep_best=1)) for epoch in (1, 2))
    assert claims.claim(tmp_path) == 1 and claims.claim(tmp_path) == 2
    first.clean_up()
    assert len(list(folder.iterdir())) == 5
    half = folder / ".tmp-00000060-e0001-abcd"
    half.mkdir()
    second.clean_up()
    second.finish()
    assert sorted(path.name for path in folder.iterdir()) == [folder_name(Point(step, 1)) for step in (10, 40, 50)]


def test_a_kill_in_the_middle_of_a_deletion_leaves_no_half_a_checkpoint(tmp_path: Path) -> None:
    (point,) = save(tmp_path, {10: None})
    assert put_aside(tmp_path, point).is_dir() and committed(tmp_path) == []
    remove_leftovers(tmp_path, epoch=1)
    assert list(tmp_path.iterdir()) == []


def test_a_manifest_that_was_written_before_losses_were_is_read(tmp_path: Path) -> None:
    write_manifest(tmp_path, Manifest(1, 7, 1, {}, {}, "", {}, BLOCK, {}, []))
    file = tmp_path / "MANIFEST.json"
    older = {
        key: value for key, value in json.loads(file.read_text()).items() if key not in ("hash", "evaluation_loss")
    }
    file.write_text(json.dumps({**older, "hash": _self_hash(older)}, indent=1))
    assert read_manifest(tmp_path).evaluation_loss is None


def test_a_run_keeps_its_last_its_multiples_and_its_best(new_run: Callable[..., Run]) -> None:
    settings = {"every": 7, "keep": 2, "keep_every": 10, "keep_best": 2}
    run = new_run("run", train={"steps": 30}, checkpoint=settings, evaluation={"every": 6, "batches": 2})
    assert run.go(2) == [0, 0], run.log()
    assert [event["step"] for event in run.events("save")] == [6, 7, 12, 14, 18, 21, 24, 28, 30]
    told = {event["step"]: event["loss"] for event in run.events("evaluation")}
    best = sorted(told, key=lambda step: told[step])[:2]
    kept = {int(name[5:13]): name for name in run.checkpoints()}
    assert sorted(kept) == sorted({28, 30, 12, 21, *best})
    for step, name in kept.items():
        assert read_manifest(run.path / "checkpoints" / name).evaluation_loss == told.get(step)
