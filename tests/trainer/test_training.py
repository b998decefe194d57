"""What a step computes, and what a run refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from settings import ConfigError
from tests.trainer.check_loaded import assemble
from tests.trainer.data.samples import write_rows, write_tokenizer
from tests.trainer.ranks import Run
from trainer.config import exact_part, resolve
from trainer.data.batches import MicroBatch
from trainer.model.loss import LossModel
from trainer.model.model_config import check_vocabulary
from trainer.model.weights import build
from trainer.plan import batch_layout, total_steps
from trainer.schema import Train
from trainer.shape import Model

NewRun = Callable[..., Run]
LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 64,
    "max_position_embeddings": 64,
}


# --- arithmetic -----------------------------------------------------------------------------------------


@given(st.integers(1, 512), st.integers(1, 64))
def test_a_batch_divides_or_is_refused_with_lines_that_work(total: int, world: int) -> None:
    train = Train(global_batch_size=total, steps=1)
    try:
        layout = batch_layout(train, world)
    except ConfigError as error:
        ranks = int(str(error).split("take ")[1].split()[0])
        assert total % world and batch_layout(train, ranks).global_batch_size == total
    else:
        assert layout.global_batch_size == total and layout.data_parallel_size == world


def test_steps_of_epochs_leave_out_a_part_of_a_batch() -> None:
    assert total_steps(Train(global_batch_size=10, epochs=2.0), 99) == 19
    with pytest.raises(ConfigError, match="less than one batch"):
        total_steps(Train(global_batch_size=10, epochs=1.0), 9)


# --- the loss -------------------------------------------------------------------------------------------


def test_documents_of_one_sequence_do_not_see_each_other() -> None:
    model = build(Model(config=LLAMA, attention="sdpa"), seed=0).eval()
    tokens = torch.arange(1, 13)[None]
    positions = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 6]])
    other = torch.cat([torch.full((1, 5), 50), tokens[:, 5:]], 1)
    with torch.no_grad():
        one = model(input_ids=tokens, position_ids=positions, use_cache=False).logits
        two = model(input_ids=other, position_ids=positions, use_cache=False).logits
        alone = model(input_ids=tokens[:, 5:], position_ids=positions[:, 5:], use_cache=False).logits
    assert torch.equal(one[:, 5:], two[:, 5:])
    torch.testing.assert_close(one[:, 5:], alone)
    assert not torch.equal(one[:, :5], two[:, :5])


def test_targets_that_do_not_count_add_nothing() -> None:
    model = build(Model(config=LLAMA), seed=0)
    tokens, positions = torch.arange(1, 9)[None], torch.arange(8)[None]
    labels = torch.tensor([[2, 3, 4, 5, -100, -100, -100, -100]])
    loss_sum = LossModel(model)
    half = loss_sum(MicroBatch.of(tokens[:, :4], labels[:, :4], positions[:, :4]))
    torch.testing.assert_close(loss_sum(MicroBatch.of(tokens, labels, positions)), half)


def test_the_loss_of_a_global_batch_does_not_depend_on_how_it_is_shared(new_run: NewRun) -> None:
    """Ragged numbers of valid tokens: a mean of means would differ."""
    shape = {
        "train": {"steps": 4},
        "evaluation": {"every": 2, "batches": 2},
        "model": {"config": {"attention_dropout": 0.0}},
    }
    seen = {}
    for name, world, micro, engine in (
        ("a", 1, 12, "ddp"),
        ("b", 4, 1, "ddp"),
        ("c", 3, 2, "fsdp"),
        ("d", 2, 3, "ddp"),
    ):
        run = new_run(name, **{**shape, "train": {"steps": 4, "micro_batch_size": micro}, "engine": {"kind": engine}})
        assert run.go(world) == [0] * world, run.log()
        seen[name] = (
            run.history("loss", "grad_norm"),
            [e["loss"] for e in run.events("evaluation")],
            run.history("hash", "tokens"),
        )
    for steps, evaluations, samples in seen.values():
        assert samples == seen["a"][2]
        assert evaluations == pytest.approx(seen["a"][1], rel=1e-4)
        for mine, theirs in zip(steps, seen["a"][0], strict=True):
            assert mine == pytest.approx(theirs, rel=1e-4)
    assert len({tokens for _, _, tokens in seen["a"][2]}) > 1


def test_bf16_trains_and_exports_bf16_on_both_engines(new_run: NewRun) -> None:
    from safetensors.torch import load_file

    for engine in ("ddp", "fsdp"):
        run = new_run(engine, train={"steps": 6, "precision": "master32"}, engine={"kind": engine})
        assert run.go(2) == [0, 0], run.log()
        tensors = load_file(run.path / "export" / "model.safetensors")
        assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
        losses = [loss for _, loss in run.history("loss")]
        assert losses[-1] < losses[0]


def test_the_export_is_a_hugging_face_folder(new_run: NewRun) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = new_run("run", train={"steps": 3})
    assert run.go(2) == [0, 0], run.log()
    model = AutoModelForCausalLM.from_pretrained(run.path / "export")
    tokenizer = AutoTokenizer.from_pretrained(run.path / "export")
    ids = tokenizer("some words", return_tensors="pt").input_ids
    assert torch.isfinite(model(ids).logits).all()


def test_chat_rows_train_on_the_assistants_words(new_run: NewRun) -> None:
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"say {i}"},
                {"role": "assistant", "content": "some words " * (1 + i % 3)},
            ]
        }
        for i in range(120)
    ]
    run = new_run("run", train={"steps": 3}, data={"format": "chat"}, evaluation={"every": 0})
    write_rows(run.path / "train.jsonl", rows)
    assert run.go(2) == [0, 0], run.log()
    counted = [tokens for _, tokens in run.history("tokens")]
    assert all(0 < tokens < 12 * 16 for tokens in counted)  # of 12 sequences of 16, the user's words do not count


# --- what a run refuses ---------------------------------------------------------------------------------


def one_line(run: Run, codes: list[int]) -> str:
    assert set(codes) == {78}, run.log()
    lines = [line for line in run.log().splitlines() if line.startswith("outlast: ")]
    assert len(lines) == 1 and "Traceback" not in run.log()
    return lines[0]


def test_an_exact_field_may_not_change_and_a_layout_field_may(new_run: NewRun) -> None:
    run = new_run("run", train={"steps": 100_000})
    run.start(2)
    run.reaches(2)
    run.signal(15)
    assert run.wait() == [75, 75]
    config = run.path / "config.yaml"
    text = config.read_text()
    config.write_text(text.replace("lr: 0.01", "lr: 0.02"))
    assert "optim.lr was 0.01 and is 0.02 now" in one_line(run, run.go(2))
    config.write_text(text.replace("seed: 3", "seed: 4"))
    assert "train.seed was 3 and is 4 now" in one_line(run, run.go(2))
    train = run.path / "train.jsonl"
    rows = train.read_text()
    train.write_text(rows + '{"text": "one more"}\n')
    config.write_text(text)
    assert "the data has changed" in one_line(run, run.go(2))
    train.write_text(rows)
    config.write_text(text.replace("every: 20", "every: 30"))
    run.start(2)
    run.reaches(run.events("stop")[0]["step"] + 1)
    run.signal(15)
    assert run.wait() == [75, 75], run.log()


def test_a_model_too_small_for_its_tokenizer_is_refused(new_run: NewRun) -> None:
    run = new_run("run", model={"config": {"vocab_size": 20}})
    assert "the model's vocab_size is 20" in one_line(run, run.go(2))


def test_a_project_that_moved_goes_on(new_run: NewRun, tmp_path: Path) -> None:
    run = new_run("run", train={"steps": 100_000})
    run.start(2)
    run.reaches(2)
    run.signal(15)
    assert run.wait() == [75, 75]
    moved = tmp_path / "moved"
    run.path.rename(moved)
    run.path = moved
    config = moved / "config.yaml"
    config.write_text(config.read_text().replace(str(tmp_path / "run"), str(moved)))
    run.start(2)
    run.reaches(run.events("stop")[0]["step"] + 1)
    run.signal(15)
    assert run.wait() == [75, 75], run.log()


@pytest.mark.parametrize(
    ("file", "text"), [("tokenizer.json", "no tokenizer"), ("tokenizer_config.json", "tokenizer_config.json")]
)
def test_a_broken_tokenizer_is_one_line(new_run: NewRun, file: str, text: str) -> None:
    run = new_run("run")
    (run.path / "tokenizer" / file).write_text("{broken")
    assert text in one_line(run, run.go(1))


def test_an_unknown_model_type_is_refused(new_run: NewRun) -> None:
    run = new_run("run", model={"config": {"model_type": "lllama"}})
    assert "model.config: Unrecognized model identifier: lllama" in one_line(run, run.go(2))


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("num_hiden_layers", 7, "llama has no such field: did you mean num_hidden_layers?"),
        ("hidden_size", "128", "model.config: "),
        ("hidden_act", "reluu", "model.config"),
    ],
)
def test_mistakes_in_the_models_shape_are_one_line(new_run: NewRun, field: str, value: object, text: str) -> None:
    run = new_run("run", model={"config": {field: value}})
    assert text in one_line(run, run.go(1))


def test_a_batch_that_does_not_divide_is_refused(new_run: NewRun) -> None:
    run = new_run("run", train={"global_batch_size": 13})
    assert "13 / 2 = 6.50" in one_line(run, run.go(2))


def test_rows_that_cannot_be_used_are_counted_or_refused(new_run: NewRun) -> None:
    run = new_run("run", train={"steps": 2}, data={"max_rejects": 0.5})
    rows = run.path / "train.jsonl"
    rows.write_text("not json\n" + rows.read_text() + '{"other": 1}\n')
    assert run.go(2) == [0, 0], run.log()
    kept = list(run.path.parent.glob(".prepared/*/rejects.jsonl"))
    assert [json.loads(line)["line"] for file in kept for line in file.read_text().splitlines()] == [1, 122]


def test_a_loss_that_is_not_finite_is_never_saved(new_run: NewRun) -> None:
    run = new_run("run", optim={"lr": 1e30, "clip": 1e30}, checkpoint={"every": 1})
    assert set(run.go(2)) == {1}
    assert "lower optim.lr" in run.log()
    for name in run.checkpoints():
        saved = assemble(run.path / "checkpoints" / name)
        assert all(tensor.isfinite().all() for tensor in saved.values()), name


def test_exact_and_layout_fields(tmp_path: Path) -> None:
    recipe = {
        "name": "x",
        "model": {"config": LLAMA, "tokenizer": str(tmp_path)},
        "data": {"train": ["a"], "seq_len": 8},
        "train": {"global_batch_size": 4, "steps": 1},
        "optim": {"lr": 1.0},
    }
    exact = exact_part(resolve(recipe, "x"))
    assert set(exact) == {"model", "data", "train", "optim", "lora", "forgetting"}
    assert "micro_batch_size" not in exact["train"] and "cache" not in exact["data"] and "lr" in exact["optim"]


def test_vocabulary_fits(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path / "tokenizer")
    check_vocabulary(1024, folder)
