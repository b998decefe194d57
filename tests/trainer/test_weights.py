"""The weights that a run starts from: the same on every engine, and no rank holds more of them than it must."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from settings import ConfigError
from tests.trainer.ranks import Run
from trainer.engines.shard import Shard
from trainer.model import weights
from trainer.model.model_config import check_weights, new_config
from trainer.model.weights import build, fill, hollow
from trainer.shape import Model

SMALL = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {**SMALL},
    "tied": {**SMALL, "model_type": "llama", "tie_word_embeddings": True},
    "gemma2": {**SMALL, "head_dim": 8},
    "mixtral": {**SMALL, "num_local_experts": 4},
    "gpt2": {"vocab_size": 300, "n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 0, "eos_token_id": 0},
}
"""gpt2's rule for the whole model writes to its layers' weights once more."""


def settings(name: str) -> Model:
    return Model(config={"model_type": name, **MODELS[name]})


def held(model: torch.nn.Module) -> dict[str, Shard]:
    """An inner part of each parameter, as a rank might hold it, with nothing in it yet."""
    parts = {}
    for name, parameter in model.named_parameters():
        start, stop = parameter.numel() // 3, parameter.numel() - 1
        parts[name] = Shard(
            name, tuple(parameter.shape), start, stop, {"weights": torch.full((stop - start,), torch.nan)}, Tensor()
        )
    return parts


def assert_holds(parts: dict[str, Shard], model: torch.nn.Module) -> None:
    for name, parameter in model.named_parameters():
        part = parts[name]
        assert torch.equal(part.tensors["weights"], parameter.detach().view(-1)[part.start : part.stop]), name  # type: ignore


@pytest.mark.parametrize("name", MODELS)
def test_drawn_weights_are_those_of_the_models_own_rule(name: str) -> None:
    model = build(settings(name), seed=3)
    theirs: Any = AutoModelForCausalLM.from_config(new_config(settings(name)))
    if not theirs.all_tied_weights_keys:  # else it draws the one tensor under both names
        for module in theirs.modules():
            module._is_hf_initialized = False
        torch.manual_seed(3)
        theirs.initialize_weights()
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), theirs.parameters(), strict=True))
    assert all(torch.equal(b, c) for b, c in zip(model.buffers(), theirs.buffers(), strict=True))
    assert all(parameter.is_meta for parameter in hollow(settings(name), 3, torch.float32).parameters())
    parts = held(model)
    fill(parts.values(), settings(name), seed=3)
    assert_holds(parts, model)


@pytest.mark.parametrize("name", MODELS)
def test_a_folders_weights_are_read_where_they_lie(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = build(settings(name), seed=3)
    model.save_pretrained(tmp_path, max_shard_size="60kB")
    folder, whole = Model(path=str(tmp_path)), []
    pretrained = weights.pretrained
    monkeypatch.setattr(weights, "pretrained", lambda *args: whole.append(args) or pretrained(*args))
    parts = held(model)
    fill(parts.values(), folder, seed=3)
    assert_holds(parts, model)
    assert bool(whole) == (name == "mixtral"), "a mixture's experts lie apart in the folder"
    assert_holds(parts, build(folder, seed=0))


def test_a_folder_without_weights_is_told(tmp_path: Path) -> None:
    model: Any = build(settings("llama"), seed=3)
    model.config.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="model.path"):
        fill(held(model).values(), Model(path=str(tmp_path)), seed=3)


@pytest.mark.parametrize("text", ["version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 538090408\n", ""])
def test_a_file_that_is_not_whole_is_told(tmp_path: Path, text: str) -> None:
    """A pointer of git lfs, or a copy that a quota has cut."""
    build(settings("llama"), seed=3).save_pretrained(tmp_path)  # type: ignore[operator]
    file, folder = tmp_path / "model.safetensors", Model(path=str(tmp_path))
    check_weights(folder)
    file.write_bytes(text.encode() or file.read_bytes()[:-100])
    for look in (check_weights, weights.sampled):
        with pytest.raises(ConfigError, match=r"model.path=.*: model.safetensors: .*: a file that is cut"):
            look(folder)


def test_weights_that_were_trained_on_are_others(tmp_path: Path) -> None:
    model: Any = build(settings("llama"), seed=3)
    model.save_pretrained(tmp_path / "a")
    model.save_pretrained(tmp_path / "b", max_shard_size="20KB")
    with torch.no_grad():
        next(iter(model.parameters()))[0, 0] += 1
    model.save_pretrained(tmp_path / "c")
    one, sharded, other = (weights.sampled(Model(path=str(tmp_path / name))) for name in "abc")
    assert one == sharded != other and one is not None


def test_together_the_ranks_read_the_folder_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = build(Model(config={"model_type": "llama", **SMALL, "hidden_size": 512, "head_dim": 128}), seed=3)
    model.save_pretrained(tmp_path)
    read, ranks, range_of = 0, 8, weights._range

    def counted(at: Any, row: int, start: int, stop: int) -> Tensor:
        nonlocal read
        read += row * (-(-stop // row) - start // row)
        return range_of(at, row, start, stop)

    monkeypatch.setattr(weights, "_range", counted)
    for rank in range(ranks):
        parts = []
        for name, parameter in model.named_parameters():
            start, stop = (parameter.numel() * index // ranks for index in (rank, rank + 1))
            parts.append(
                Shard(name, tuple(parameter.shape), start, stop, {"weights": torch.empty(stop - start)}, Tensor())
            )
        fill(parts, Model(path=str(tmp_path)), seed=3)
    assert read <= 1.1 * sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("engine", "copies"),
    [({"kind": "fsdp"}, 3), ({"kind": "deepspeed", "config": {"zero_optimization": {"stage": 3}}}, 5)],
    ids=["fsdp", "zero3"],
)
def test_no_rank_ever_holds_more_than_its_share(
    new_run: Callable[..., Run], engine: dict[str, Any], copies: int
) -> None:
    """Weights and two moments; DeepSpeed keeps gradients and another copy of the weights from the beginning."""
    peaks = []
    for name, hidden, world in (("small", 32, 2), ("large", 512, 8)):
        shape = {"hidden_size": hidden, "intermediate_size": 4 * hidden, "num_hidden_layers": 16}
        run = new_run(name, model={"config": shape}, engine=engine, train={"global_batch_size": world})
        argv = ["tests.trainer.peak_of_setup", str(run.path / "config.yaml")]
        assert run.go(world, argv=argv) == [0] * world, run.log()
        peaks.append([int(run.log(rank).split("grew by ")[1].split()[0]) for rank in range(world)])
    whole, largest = 4 * 16 * (4 * 512**2 + 3 * 512 * 2048), 4 * 512 * 2048
    small, large = peaks
    assert max(large) - min(small) < whole * copies / world + 2 * largest
