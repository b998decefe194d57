"""Scaled rotary positions: the model is the one that transformers builds from the same words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from settings import ConfigError, convert, read_json, to_plain
from tests.trainer.ranks import Run
from tests.trainer.test_weights import MODELS, SMALL, held
from trainer.model import weights
from trainer.model.model_config import config_of, context_notes
from trainer.schema import Train, TrainConfig
from trainer.shape import Model
from trainer.sources import Data

NewRun = Callable[..., Run]
TRAINED = 16
"""Positions of the small model."""
SHAPE = {"model_type": "llama", **SMALL, "max_position_embeddings": TRAINED}
THETA = {"rope_type": "default", "rope_theta": 500000.0}
FACTORS = {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.5, 2.0, 3.0, 4.0]}
CASES: dict[str, dict[str, Any]] = {
    "linear": {},
    "dynamic": {},
    "yarn": {"beta_fast": 4.0},
    "llama3": {"low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "longrope": FACTORS,
}
KNOWS_ITS_LENGTH = ("yarn", "llama3", "longrope")


def rope(rope_type: str, **more: Any) -> dict[str, Any]:
    return {"rope_type": rope_type, "factor": 4.0, **more}


def of(path: Path, words: dict[str, Any]) -> Model:
    return convert({"path": str(path), "attention": "sdpa", "rope": words}, Model, "test")


def folder(path: Path, **shape: Any) -> Path:
    model: Any = weights.build(Model(config={**SHAPE, "rope_parameters": THETA, **shape}), seed=3)
    model.save_pretrained(path)
    return path


def logits(model: Any, length: int) -> torch.Tensor:
    tokens = torch.arange(length).remainder(7)[None] + 5
    with torch.no_grad():
        return model.eval()(input_ids=tokens, use_cache=False).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("rope_type", CASES)
def test_logits_are_those_of_transformers(rope_type: str, tmp_path: Path) -> None:
    path, words = folder(tmp_path), rope(rope_type, **CASES[rope_type])
    config = AutoConfig.from_pretrained(path)
    config.max_position_embeddings = TRAINED * (1 if rope_type == "dynamic" else 4)
    config.rope_parameters = {**words, "rope_theta": 500000.0}
    if rope_type in KNOWS_ITS_LENGTH:
        config.rope_parameters["original_max_position_embeddings"] = TRAINED
    theirs = AutoModelForCausalLM.from_pretrained(path, config=config, attn_implementation="sdpa")

    ours: Any = weights.build(of(path, words), seed=0)
    assert ours.config.rope_parameters == config.rope_parameters
    assert ours.config.max_position_embeddings == config.max_position_embeddings
    hollow = weights.skeleton(of(path, words))
    weights.materialize(hollow, torch.device("cpu"))
    parts = held(ours)
    weights.fill(parts.values(), of(path, words), seed=0)
    hollow.load_state_dict(ours.state_dict())
    plain: Any = weights.build(Model(path=str(path), attention="sdpa"), seed=0)
    for length in (3 * TRAINED, TRAINED // 2):
        expected = logits(theirs, length)
        assert torch.equal(logits(ours, length), expected)
        assert torch.equal(logits(hollow, length), expected), "built without its weights"
        if rope_type != "dynamic" or length > TRAINED:
            assert not torch.equal(logits(plain, length), expected)


def test_dynamic_frequencies_do_not_remember(tmp_path: Path) -> None:
    """transformers keeps those of the longest batch so far, and a resumed run would go on with others."""
    path = of(folder(tmp_path), rope("dynamic"))
    fresh, used = weights.build(path, seed=0), weights.build(path, seed=0)
    logits(used, 4 * TRAINED)
    for length in (2 * TRAINED, TRAINED // 2):
        assert torch.equal(logits(used, length), logits(fresh, length))


def test_the_base_of_an_older_folder_survives(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        '{"model_type": "llama", "hidden_size": 32, "num_attention_heads": 4, "rope_theta": 10500.0, '
        '"max_position_embeddings": 64}'
    )
    config = config_of(of(tmp_path, rope("yarn")))
    assert config.rope_parameters["rope_theta"] == 10500.0
    assert config.max_position_embeddings == 256
    assert config_of(of(tmp_path, rope("linear", rope_theta=7.0))).rope_parameters["rope_theta"] == 7.0


def test_where_a_model_has_its_trained_length_beside_it_that_counts() -> None:
    shape = {"model_type": "phi3", "hidden_size": 32, "num_attention_heads": 4, "max_position_embeddings": 16}
    config = config_of(convert({"config": shape, "rope": rope("longrope", **FACTORS)}, Model, "test"))
    config.standardize_rope_params()
    assert config.rope_parameters["original_max_position_embeddings"] == 16
    assert config.max_position_embeddings == 64


GEMMA3 = {"model_type": "gemma3_text", "hidden_size": 32, "num_attention_heads": 4}
SCALED = {**SHAPE, "rope_parameters": {**THETA, **rope("linear")}}


@pytest.mark.parametrize(
    ("shape", "words", "line"),
    [
        ({"model_type": "gpt2", **MODELS["gpt2"]}, rope("yarn"), "model.rope: gpt2 has no rotary positions"),
        (GEMMA3, rope("yarn"), "model.rope: gemma3_text has other ones for each kind of layer: "),
        (SCALED, rope("yarn"), "model.rope: the model's positions are scaled already (linear): give original_max_"),
        (
            SHAPE,
            rope("longrope", **{**FACTORS, "long_factor": [1.0]}),
            "model.rope.long_factor has 1 numbers, the mode",
        ),
        (SHAPE, rope("yarm"), "test: rope.rope_type=yarm: did you mean yarn?"),
        (SHAPE, {"factor": 2}, "test: rope.rope_type=None: "),
        (SHAPE, {"rope_type": "yarn"}, "test: rope.factor is missing"),
        (SHAPE, rope("linear", beta_fast=3), "test: unknown key rope.beta_fast"),
        (SHAPE, {**rope("linear"), "factor": 0.5}, "test: rope.factor=0.5: expected float >= 1"),
    ],
)
def test_a_mistake_is_one_line(shape: dict[str, Any], words: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as error:
        config_of(convert({"config": shape, "rope": words}, Model, "test"))
    assert str(error.value).startswith(line) and "\n" not in str(error.value)


def test_scaled_again_from_the_length_that_is_given() -> None:
    words = rope("yarn", original_max_position_embeddings=TRAINED)
    config = config_of(convert({"config": SCALED, "rope": words}, Model, "test"))
    assert config.rope_parameters == {**words, "rope_theta": 500000.0}


@pytest.mark.parametrize(
    ("words", "seq_len", "line"),
    [
        (None, TRAINED, None),
        (None, TRAINED + 1, "data.seq_len=17 is more than the model's 16 positions: scale them by model.rope"),
        (rope("dynamic"), 4 * TRAINED, None),
        (
            rope("yarn"),
            4 * TRAINED + 1,
            "data.seq_len=65 is more than the model's 64 positions: raise model.rope.factor",
        ),
    ],
)
def test_a_longer_sequence_is_said(words: dict[str, Any] | None, seq_len: int, line: str | None) -> None:
    model = convert({"config": SHAPE, "rope": words}, Model, "test")
    settings = TrainConfig("run", model, Data(["x"], seq_len), Train(global_batch_size=1, steps=1))
    notes = context_notes(settings.model, settings.data.seq_len)
    assert notes[0].startswith(line) if line else not notes, notes


def test_a_run_is_cut_and_resumed_and_its_export_has_the_scaling(new_run: NewRun) -> None:
    changes: dict[str, Any] = {
        "model": {"config": {"max_position_embeddings": 4}, "rope": rope("dynamic")},
        "train": {"steps": 12},
        "evaluation": {"every": 0},
    }
    whole, cut = new_run("whole", **changes), new_run("cut", **changes)
    assert whole.go(2) == [0, 0], whole.log()
    cut.stop_after(2, 5)
    assert cut.go(2) == [0, 0], cut.log()
    assert cut.history("loss") == whole.history("loss")
    assert cut.done()["sha256"] == whole.done()["sha256"]
    written = read_json(whole.path / "export" / "config.json")
    assert written["rope_parameters"] == {**rope("dynamic"), "rope_theta": 10000.0}
    assert to_plain(AutoConfig.from_pretrained(whole.path / "export").rope_parameters) == written["rope_parameters"]
