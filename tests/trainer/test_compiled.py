"""Layers by torch.compile. That such runs are cut and resumed to the bit, and have the losses of plain PyTorch, is
shown at night (test_engines); here the same graphs are made, and run without a compiler."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace

from settings import ConfigError
from tests.trainer.test_lean import settings
from tests.trainer.test_loss import SMALL, batch
from trainer.config import resolve
from trainer.engines.deepspeed import zero
from trainer.engines.deepspeed.settings import Deepspeed
from trainer.layout import BatchLayout
from trainer.model import attention, compiled
from trainer.model.loss import LossModel
from trainer.model.weights import build
from trainer.schema import Train, TrainConfig
from trainer.shape import Model

CPU = torch.device("cpu")
# dynamo asks its own inputs
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


def test_the_gradients_are_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found, make = [], torch.compile
    monkeypatch.setattr(torch, "compile", lambda forward, **options: make(forward, backend="eager", **options))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "set by the user"))
    for kind in ("plain", "compiled"):
        model = build(Model(config={"model_type": "llama", **SMALL}), seed=1)
        if kind == "compiled":
            compiled.compile_layers(model, CPU, tmp_path)
        LossModel(model)(batch()).backward()
        found.append([p.grad for p in model.parameters()])
    attention.register()
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_what_is_kept_lies_in_the_runs_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    compiled.compile_layers(build(Model(config={"model_type": "llama", **SMALL}), seed=1), CPU, tmp_path)
    attention.register()
    assert compiled.os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "compiled")


def test_who_cannot_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    recipe: dict[str, Any] = {
        "name": "x",
        "model": {"config": {"model_type": "llama", **SMALL}, "tokenizer": "t"},
        "data": {"train": ["a"], "seq_len": 8},
        "train": {"global_batch_size": 2, "steps": 1, "compile": True, "gradient_checkpointing": "selective"},
        "optim": {"lr": 1e-3},
    }
    with pytest.raises(ConfigError, match="nothing to select"):
        resolve(recipe, "recipe")
    config, engine = settings("fp32"), Deepspeed({"zero_optimization": {"stage": 3}})
    train = Train(global_batch_size=2, steps=1, precision="fp32", compile=True)
    chosen = TrainConfig(config.name, config.model, config.data, train, config.optim, engine=engine)
    with pytest.raises(ConfigError, match=r"train.compile: ZeRO 3 gathers"):
        zero.complete(chosen, BatchLayout(2, 1, 1), 32)
    monkeypatch.setattr(compiled.shutil, "which", lambda _: None)
    with pytest.raises(ConfigError, match="no C\\+\\+ compiler on this node"):
        compiled.compile_layers(build(config.model, seed=1), CPU, tmp_path)
    with pytest.raises(ConfigError, match="Linear does not say what its layers are"):
        compiled.compile_layers(torch.nn.Linear(1, 1), CPU, tmp_path)


def auto(**train: Any) -> TrainConfig:
    config = settings("fp32")
    return replace(config, train=Train(global_batch_size=2, steps=1, precision="fp32", compile="auto", **train))


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2", "mixtral"])
def test_one_layer_is_tried_and_nothing_else_is_held(
    kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of architectures that are built in other ways; the compiler is left out."""
    make = torch.compile
    monkeypatch.setattr(torch, "compile", lambda forward, **options: make(forward, backend="eager", **options))
    sizes = {"n_embd": 32, "n_head": 2, "n_layer": 3} if kind == "gpt2" else SMALL
    config = replace(auto(), model=Model(config={"model_type": kind, **sizes}))
    model = compiled._with_one_layer(config, CPU)
    assert len(compiled._layers(model)) == 1
    assert model.get_output_embeddings().weight.is_meta  # type: ignore[operator, union-attr]
    assert all(seconds > 0 for seconds in compiled.trial(config, BatchLayout(2, 1, 1), CPU, tmp_path))


def test_a_choice_is_made_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By the seconds of the first attempt; another micro batch is another question."""
    layout, said = BatchLayout(2, 1, 1), list[str]()
    for plain, pays in ((1.03, True), (1.01, False)):
        monkeypatch.setattr(compiled, "trial", lambda *_, plain=plain: (plain, 1.0))
        assert compiled.decided(auto(), layout, CPU, tmp_path, said.append) is pays
        monkeypatch.setattr(compiled, "trial", lambda *_: (1.0, 9.0) if pays else (9.0, 1.0))  # noqa: B023
        assert compiled.decided(auto(), layout, CPU, tmp_path, said.append) is pays
        layout = BatchLayout(1, 2, 1)
    assert said[0] == said[1] == "train.compile=auto: a layer takes 1.03e+03 ms, compiled 1e+03 ms: compiled"
    assert said[2].endswith("left as it is")


def test_what_cannot_be_compiled_runs_as_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(compiled.shutil, "which", lambda _: None)
    said: list[str] = []
    for _ in range(2):
        assert not compiled.decided(auto(), BatchLayout(2, 1, 1), CPU, tmp_path, said.append)
    assert len(said) == 1 and "no C++ compiler on this node" in said[0]
