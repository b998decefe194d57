"""The benchmark of the optimizer step: its gate, its race, what it draws, and its rows. No figure is judged here."""

from __future__ import annotations

import ast
import sys
from dataclasses import replace
from itertools import count, cycle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.rows import Row, verdict
from benchmarks.step import figures, packing, place, steps
from benchmarks.step import race as racing
from benchmarks.step.race import QUIET, Racer, Ran, Round, Step, most, p20, race

PEERS = steps.SCRIPTS
CONTENDER = """
import sys
sys.path.insert(0, sys.argv[1])
from common import Gate

gate = Gate()
for step in range(int(sys.argv[2])):
    gate.step()
    gate.mark("forward")
    gate.values["loss"] = float(step)
print("out of steps", file=sys.stderr)
"""


@pytest.fixture
def contender(tmp_path: Path) -> Racer:
    return racer(tmp_path, "one", 1000)


def racer(folder: Path, name: str, steps: int, world: int = 1) -> Racer:
    script = folder / "contender.py"
    script.write_text(CONTENDER)
    return Racer(name, [sys.executable, str(script), str(PEERS), str(steps)], folder / f"{name}.log", world)


# --- the gate -------------------------------------------------------------------------------------------------


def test_behind_the_gate_runs_what_was_asked_for_and_nothing_more(contender: Racer) -> None:
    with contender:
        contender.ready()
        assert [step.values["loss"] for step in contender.run(3)] == [0, 1, 2]
        assert [step.values["loss"] for step in contender.run(2)] == [3, 4]
        [step] = contender.run(1)
        assert 0 <= step.marks["forward"] <= step.wall and step.cpu >= 0


def test_at_the_end_of_its_orders_it_leaves(contender: Racer) -> None:
    with contender:
        contender.ready()
        [(process, _)] = contender.ranks
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(120) == 0


def test_ranks_step_together_and_their_cpu_seconds_are_summed(tmp_path: Path) -> None:
    with racer(tmp_path, "two", 1000, world=2) as two:
        two.ready()
        assert len(two.run(4)) == 4
    told = [{"wall": wall, "cpu": 0.25, "marks": {}, "loss": wall} for wall in (1.0, 2.0)]
    assert Step.of(told) == Step(1.0, 0.5, {}, {"loss": 1.0})


def test_a_race_drops_the_first_step_of_a_round_and_says_why_one_is_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(racing, "busy", lambda: 0.0)
    ran = race([racer(tmp_path, "long", 1000), racer(tmp_path, "short", 9)], warm=2, rounds=3, steps=4)
    assert [step.values["loss"] for step in ran["long"].steps] == list(range(2 + 3 * 5))
    assert [[step.values["loss"] for step in one.steps] for one in ran["long"].rounds] == [
        [3, 4, 5, 6],
        [8, 9, 10, 11],
        [13, 14, 15, 16],
    ]
    assert (ran["long"].words, ran["short"].words) == ("", "short: out of steps")
    assert len(ran["short"].steps) == 7


def test_rounds_that_others_disturb_are_repeated(contender: Racer, monkeypatch: pytest.MonkeyPatch) -> None:
    worked = iter([0.0, 1e6, 0.0, 0.0, 0.0, 0.0])  # a neighbour in the first round
    monkeypatch.setattr(racing, "busy", lambda: next(worked))
    [ran] = race([contender], warm=1, rounds=2, steps=3).values()
    assert len(ran.steps) == 1 + 3 * 4 < most(1, 2, 3)
    assert [one.others for one in ran.rounds] == [0.0, 0.0]
    assert [step.values["loss"] for step in ran.counted] == [6, 7, 8, 10, 11, 12]


def test_where_others_never_rest_the_race_ends_with_the_least_disturbed(
    contender: Racer, monkeypatch: pytest.MonkeyPatch
) -> None:
    worked = count(0, 1000)
    monkeypatch.setattr(racing, "busy", lambda: float(next(worked)))
    [ran] = race([contender], warm=1, rounds=2, steps=3).values()
    assert len(ran.steps) == 1 + 4 * 4 < most(1, 2, 3)
    assert len(ran.rounds) == 2 and all(one.others > QUIET for one in ran.rounds)


def test_peers_run_without_outlast() -> None:
    ours = {"benchmarks", "trainer", "settings", "durable", "timeline", "slurm", "envs", "recipes"}
    for path in PEERS.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & ours, path.name


def test_adamw_begins_after_the_passes_and_with_its_first_group(contender: Racer) -> None:
    script = Path(contender.argv[1])
    marks = ["_adamw_begins()", 'mark("passed")', "_adamw_begins()", 'mark("between")', "_adamw_begins()"]
    lines = "\n".join(f"    gate.{mark}" for mark in marks)
    script.write_text(CONTENDER.replace('    gate.mark("forward")', lines))
    with contender:
        contender.ready()
        [step] = contender.run(1)
    assert step.marks["passed"] < step.marks["adamw"] < step.marks["between"]


# --- what is drawn ----------------------------------------------------------------------------------------------


def test_lengths_are_skewed_and_always_the_same() -> None:
    drawn = packing.lengths(4000)
    assert drawn == packing.lengths(4000) and packing.lengths(100) == drawn[:100]
    assert 120 < sum(drawn) / len(drawn) < 130
    assert min(drawn) >= packing.SHORTEST and max(drawn) == packing.LONGEST
    assert sorted(drawn)[2000] < 110  # half are shorter than most batches' padding


@given(st.lists(st.integers(1, 600), max_size=30), st.integers(0, 2000))
def test_documents_that_fit_are_taken_in_order(drawn: list[int], room: int) -> None:
    found = packing.fitting(drawn, room)
    rest = iter(drawn)
    assert sum(found) <= room and all(one in rest for one in found)
    assert sum(drawn) > room or found == drawn


def test_a_text_becomes_the_tokens_that_were_drawn(tmp_path: Path) -> None:
    shape = place.Shape("tiny", 64, 2, 50, rows=2, length=8)
    place.write_tokenizer(shape.vocabulary, tmp_path / "tokenizer")
    place.write_documents([shape.length] * 7, shape.vocabulary, tmp_path / "train.jsonl")
    tree = place.recipe(tmp_path, shape.length, shape.rows, "fp32")
    tokens = place.in_order(tree, 6)
    assert tokens.shape == (6, 8) and (tokens[:, -1] == 0).all() and (tokens[:, :-1] > 0).all()
    assert packing.filled(tree) == (87.5, 87.5)  # seven pairs of an input and its target in eight places
    packed = packing.as_packed(tree, 3, shape.rows)
    assert [[*first["input_ids"], *second["input_ids"]] for first, second in packed] == tokens.reshape(3, 16).tolist()
    assert all(one["labels"] == [-100, *one["input_ids"][1:]] for step in packed for one in step)
    assert [len(one["input_ids"]) for step in packing.at_random(tree) for one in step] == [8] * 7


def test_of_a_prompt_and_its_answer_the_answer_counts(tmp_path: Path) -> None:
    lengths = [9, 17, 41]
    place.write_tokenizer(50, tmp_path / "tokenizer")
    place.write_pairs(lengths, 0.75, 50, tmp_path / "train.jsonl")
    tree = place.recipe(tmp_path, 64, 1, "fp32")
    tree["data"]["format"] = "completion"
    found = [one for step in packing.as_packed(tree, 1, 1) for one in step]
    assert sorted(len(one["input_ids"]) for one in found) == lengths
    for one in found:
        answer = 1 + round(0.25 * (len(one["input_ids"]) - 1))  # with the token that ends it
        assert one["labels"] == [-100] * (len(one["labels"]) - answer) + one["input_ids"][-answer:]


# --- rows -----------------------------------------------------------------------------------------------------


def test_a_neighbour_does_not_move_the_percentile() -> None:
    assert p20([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) == 2.0
    assert p20([1.0, 2.0, 3.0, 4.0, 50.0, 60.0]) == 2.0


def ran(around: float = 1.0, **values: float) -> Ran:
    """Rounds of steps that take 10 ms for the model and AdamW, and `around` ms besides."""
    begun = around / 2000
    marks = dict(
        zip(("forward", "passed", "adamw", "stepped"), (begun + ms / 1000 for ms in (0, 3, 9, 10)), strict=True)
    )
    step = Step((10 + around) / 1000, 0.02, marks, values)
    return Ran([step] * 6, [Round(0.0, [step] * 3)] * 2)


def test_a_goal_that_is_missed_stands_with_where_the_time_went() -> None:
    time, spent = figures.time_rows("5M", ran(2), "HF Trainer", ran(3), 1.15)
    assert (time.outlast, time.peer, time.goal) == (pytest.approx(12), pytest.approx(13), "at least 1.15x")
    assert time.met is False and "around 2.00 and 3.00; with nothing around" in time.cause and "1.30x" in time.cause
    assert (spent.outlast, spent.ratio, spent.goal, spent.met) == (20, 1, "", None)
    assert figures.time_rows("5M", ran(2), "HF Trainer", ran(4), 1.15)[0].met is True
    beside = figures.time_rows("5M", ran(2), "HF Trainer", ran(3), 1.15, ran(0))[0]
    assert (beside.limit_name, beside.limit) == ("bare loop", pytest.approx(10))
    assert beside.cause.endswith("ours would be 1.30x, and the bare loop is 1.30x")


def test_a_peer_that_does_not_run_is_a_row_with_its_words() -> None:
    out = Ran(words="no matching distribution")
    for times in (1.15, None):
        time, spent = figures.time_rows("5M", ran(), "Lightning", out, times)
        assert (verdict(time), time.cause, time.peer) == ("missing", "no matching distribution", None)
        assert (verdict(spent), spent.ratio) == ("", None)
    [rate, _] = figures.token_rows("tokens", ran(tokens=100.0), "HF", out, 1.9, None)
    assert (verdict(rate), rate.cause) == ("missing", "no matching distribution")


def test_without_a_goal_nothing_is_missed() -> None:
    assert [verdict(row) for row in figures.time_rows("5M", ran(9), "Lightning", ran(0), None)] == ["", ""]


def test_useful_tokens_count_by_rounds() -> None:
    ours, theirs = ran(0, tokens=1000.0), ran(0, tokens=500.0)
    rate, spent = figures.token_rows("tokens", ours, "HF", theirs, 3, 2.1)
    assert (rate.outlast, rate.peer, rate.ratio) == (pytest.approx(1e5), pytest.approx(5e4), pytest.approx(2))
    assert rate.met is False and "2.10x" in rate.cause and "AdamW 1 and 2" in rate.cause
    assert spent.outlast == pytest.approx(5e4) and not spent.goal
    slots = cycle([100.0, 300.0])
    padded = [replace(step, values={"tokens": 100.0, "slots": next(slots)}) for step in ran().counted]
    assert packing.padding(Ran(padded, [Round(0.0, padded)])) == 2


def test_losses_that_depart_say_where() -> None:
    plain = [8.0, 7.0, 6.0]
    assert figures.losses(Ran([*ran().steps[:1], *ran(loss=8.0).steps]), 2) == [8.0, 8.0]  # the first has none yet
    row = figures.loss_row("5M", figures.apart([8.0, 7.0 + 7e-6, 6.0], plain), "the bare loop's")
    assert (row.met, row.outlast, row.unit) == (True, pytest.approx(1), "ppm")
    row = figures.loss_row("5M", figures.apart([8.0, 7.7, 6.6], plain), "the bare loop's")
    assert row.met is False and "0 ppm apart at step 1, 1e+05 at step 2, the first one beyond" in row.cause


def test_a_heat_has_a_row_for_every_peer() -> None:
    tiny = steps.heats(quick=True)[0]
    contenders = [steps.OURS, steps.AUTO, steps.BOARD, steps.SELDOM, steps.TRAINER_COMPILED, *steps.PEERS]
    found = list(steps.rows(tiny, {name: ran(loss=8.0, log=0.0002) for name in contenders}))
    titles = [row.peer_name for row in found if row.name == "0.13M bf16: step"]
    assert titles == [*steps.PEERS, steps.SELDOM]
    compiled = [row.peer_name for row in found if row.name == "0.13M bf16, compile: auto: step"]
    assert compiled == [steps.TRAINER, steps.TRAINER_COMPILED]
    assert Row("0.13M bf16: the host's share beyond a bare loop's", "ms", 0.0) in found
    assert found[-1].met is True and found[-1].goal == "at most 0.3 ms"
    fp32 = replace(tiny, precision="fp32", small=False)
    others = {name: ran(loss=8.1 if name == "Lightning" else 8.0) for name in contenders}
    ours, lightning = [row for row in steps.rows(fp32, others) if "losses" in row.name]
    assert (ours.met, ours.outlast, lightning.met, lightning.peer_name) == (True, 0, False, "Lightning")
