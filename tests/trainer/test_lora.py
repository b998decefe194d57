"""LoRA in the same loop: only the adapters are trained and saved, it resumes to the bit, and the export is peft's own merge."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from settings import ConfigError, merge, read_yaml
from tests.trainer.check_loaded import assemble
from tests.trainer.ranks import Run, assert_cut_is_as_whole
from tests.trainer.test_engines import DDP, FSDP, zero
from tests.trainer.test_loss import SMALL
from trainer import config, memory, recipe
from trainer.export import export
from trainer.model import four_bit, lora
from trainer.model.four_bit import elements, held_bytes
from trainer.model.weights import build
from trainer.records.throughput import Cost
from trainer.schema import LORA_RATE, Lora
from trainer.shape import Model

NewRun = Callable[..., Run]


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft reads it
@pytest.mark.parametrize(
    ("engine", "world", "more"),
    [
        (FSDP, 2, {}),
        pytest.param(DDP, 2, {"tokens": [5, 9]}, marks=pytest.mark.nightly),
        pytest.param(DDP, 3, {"dropout": 0.1, "targets": ["q_proj", "v_proj"]}, marks=pytest.mark.nightly),
        (zero(2), 2, {"tokens": [5, 9]}),
        pytest.param(zero(3), 2, {}, marks=pytest.mark.nightly),
    ],
    ids=str,
)
def test_cut_resumed_and_merged(new_run: NewRun, engine: dict[str, Any], world: int, more: dict[str, Any]) -> None:
    shape = {"lora": {"r": 4, **more}, "train": {"steps": 12}, "engine": engine, "evaluation": {"every": 0}}
    assert_cut_resumed_and_merged(new_run, world, shape)


def assert_cut_resumed_and_merged(new_run: NewRun, world: int, shape: dict[str, Any]) -> Run:
    whole, cut = new_run("whole", **shape), new_run("cut", **shape)
    assert_cut_is_as_whole(whole, cut, world)
    losses = [loss for _, loss in whole.history("loss")]
    assert losses[-1] < losses[0]
    saved = assemble(whole.path / "checkpoints" / whole.checkpoints()[-1])
    assert all("lora_" in key or "trainable_tokens" in key for key in saved) and saved
    assert_merged_as_peft_does(whole.path, saved)
    return whole


def assert_merged_as_peft_does(run: Path, saved: dict[str, torch.Tensor]) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    settings = config.read(run / "config.yaml")
    assert settings.lora is not None
    theirs = get_peft_model(
        build(settings.model, settings.train.seed),  # type: ignore[arg-type]
        LoraConfig(
            r=4,
            lora_alpha=8,
            target_modules=settings.lora.targets,
            trainable_token_indices={"embed_tokens": settings.lora.tokens} if settings.lora.tokens else None,
        ),
    )
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(saved[f"weights/{name.removeprefix('base_model.model.')}"].view_as(parameter))
    merged = theirs.merge_and_unload()  # type: ignore[operator]
    exported = dict(AutoModelForCausalLM.from_pretrained(run / "export").named_parameters())
    assert exported.keys() == dict(merged.named_parameters()).keys()
    assert all(torch.equal(exported[name], p.to(exported[name].dtype)) for name, p in merged.named_parameters())


def test_only_adapters_have_a_gradient_and_every_rank_draws_the_same() -> None:
    models = [build(Model(config={"model_type": "llama", **SMALL}), seed=1) for _ in range(2)]
    for model in models:
        lora.inject(model, Lora(r=4), seed=3)
        trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        assert trained and all("lora_" in name for name in trained) and not any("lm_head" in name for name in trained)
        torch.rand(7)
    one, two = (dict(model.named_parameters()) for model in models)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_layer_that_is_not_there_is_one_line() -> None:
    model = build(Model(config={"model_type": "llama", **SMALL}), seed=1)
    with pytest.raises(ConfigError, match="lora: Target modules .*not found"):
        lora.inject(model, Lora(targets=["no_such_layer"]), seed=3)


def test_it_has_a_rate_of_its_own(tmp_path: Path) -> None:
    tree: dict[str, Any] = {
        "name": "x",
        "model": {"path": str(tmp_path)},
        "data": {"train": ["a"], "seq_len": 8},
        "train": {"global_batch_size": 4, "steps": 1},
        "optim": {},
        "lora": {},
    }
    assert config.resolve(tree, "x").optim.lr == LORA_RATE


# --- on 4 bits ------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(new_run: NewRun) -> Path:
    """Of an unquantized model."""
    run = new_run("folder")
    model: Any = build(config.read(run.path / "config.yaml").model, seed=3)
    model.save_pretrained(run.path / "model")
    return run.path / "model"


def test_adapters_go_on_beside_the_weights_that_they_began_with_alone(new_run: NewRun, folder: Path) -> None:
    """No checkpoint holds those: a folder that was trained on, or fetched anew, has the same config.json."""
    shape = {"model": {"path": str(folder), "config": None}, "lora": {"r": 4}, "evaluation": {"every": 0}}
    run = new_run("run", **shape)
    run.stop_after(1, 3)
    other: Any = build(config.read(run.path / "config.yaml").model, seed=3)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1)
    other.save_pretrained(folder)
    assert run.go(1) == [78]
    assert "model.weights was" in run.log() and "this would be another run" in run.log()
    settings, newest = config.read(run.path / "config.yaml"), run.path / "checkpoints" / run.checkpoints()[-1]
    with pytest.raises(ConfigError, match="no longer holds the weights of this run"):
        export(settings, newest, run.path / "exported", print)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize(
    ("world", "train", "more"),
    [
        (2, {}, {}),
        pytest.param(1, {"gradient_checkpointing": "selective"}, {"tokens": [5, 9]}, marks=pytest.mark.nightly),
        pytest.param(2, {"precision": "adam32"}, {"targets": ["q_proj", "v_proj"]}, marks=pytest.mark.nightly),
        pytest.param(3, {"precision": "bf16", "gradient_checkpointing": True}, {}, marks=pytest.mark.nightly),
        pytest.param(1, {"compile": True}, {}, marks=pytest.mark.nightly),
    ],
    ids=str,
)
def test_on_four_bits_it_is_cut_resumed_and_merged_into_the_folders_weights(
    new_run: NewRun, folder: Path, world: int, train: dict[str, Any], more: dict[str, Any]
) -> None:
    """Evaluated on the way, where bitsandbytes would pack the weights for inference, and leave no gradient."""
    shape = {
        "model": {"path": str(folder), "config": None},
        "lora": {"r": 4, "quantize": "nf4", **more},
        "train": {"steps": 12, "precision": "master32", **train},
        "evaluation": {"every": 5},
    }
    run = assert_cut_resumed_and_merged(new_run, world, shape)
    evaluated = [event["loss"] for event in run.events("evaluation")]
    assert len(evaluated) == 3 and evaluated[2] < evaluated[1] < evaluated[0]


def test_four_bits_are_counted_as_they_are(folder: Path) -> None:
    settings = Model(path=str(folder))
    whole, held = build(settings, seed=3), four_bit.build(settings, 3, torch.device("cpu"))
    sizes = {name: parameter.numel() for name, parameter in whole.named_parameters()}
    assert {name: elements(parameter) for name, parameter in held.named_parameters()} == sizes
    assert Cost.of(held) == Cost.of(whole)
    bits = {name for name in sizes if "_proj" in name}
    blocks = {name: sizes[name] // 64 for name in bits}
    for name, parameter in held.named_parameters():
        if (
            name in bits
        ):  # two weights a byte; a byte each 64; two tables, and for every 256 blocks 4 bytes, and an offset
            wanted = sizes[name] // 2 + blocks[name] + 4 * (16 + 256 + -(-blocks[name] // 256) + 1)
            assert held_bytes(parameter) == wanted, name
        else:
            assert held_bytes(parameter) == 2 * sizes[name], name
    lora.inject(held, Lora(r=4), seed=3)
    adapters = sum(4 * parameter.numel() for parameter in held.parameters() if parameter.requires_grad)
    engine: Any = SimpleNamespace(module=held, shards=list)
    assert memory.held_by(engine, 0).weights == sum(map(held_bytes, held.parameters())) - adapters


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_the_model_never_stands_whole_before_it_is_in_four_bits(new_run: NewRun) -> None:
    """In the peak are the file's pages, 2 bytes a parameter, and what is held; a copy in bf16 would be 2 more, in fp32 4."""
    peaks, sizes = [], []
    for name, hidden in (("small", 32), ("large", 512)):
        shape = {"hidden_size": hidden, "intermediate_size": 4 * hidden, "num_hidden_layers": 16}
        base = new_run(f"{name}-folder", model={"config": shape})
        model: Any = build(config.read(base.path / "config.yaml").model, seed=3, dtype=torch.bfloat16)
        model.save_pretrained(base.path / "model")
        sizes.append(sum(parameter.numel() for parameter in model.parameters()))
        changes = {"model": {"path": str(base.path / "model"), "config": None}, "train": {"precision": "master32"}}
        run = new_run(name, lora={"r": 4, "quantize": "nf4"}, **changes)
        assert run.go(1, argv=["tests.trainer.peak_of_setup", str(run.path / "config.yaml")]) == [0], run.log()
        peaks.append(int(run.log().split("grew by ")[1]))
    assert peaks[1] - peaks[0] < 3.5 * (sizes[1] - sizes[0])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"engine": {"kind": "fsdp"}}, "needs engine.kind=ddp: 4-bit weights stay whole on every rank, and fsdp would"),
        ({"engine": {"kind": "deepspeed", "config": {}}}, "needs engine.kind=ddp: .*deepspeed would cut them"),
        ({"model": {"path": None, "config": {"model_type": "llama"}}}, "needs model.path: a new model"),
        ({"train": {"precision": "fp32"}}, "computes in bf16, which train.precision=fp32 rules out"),
    ],
    ids=["fsdp", "deepspeed", "new", "fp32"],
)
def test_what_four_bits_cannot_is_refused(change: dict[str, Any], said: str) -> None:
    tree: dict[str, Any] = {
        "name": "x",
        "model": {"path": "folder"},
        "data": {"train": ["a"], "seq_len": 8},
        "train": {"global_batch_size": 4, "steps": 1},
        "lora": {"quantize": "nf4"},
    }
    config.resolve(tree, "x")
    with pytest.raises(ConfigError, match=f"^x: lora.quantize=nf4 {said}"):
        config.resolve(merge(tree, change), "x")


def test_a_quantized_folder_is_refused_before_the_queue(new_run: NewRun, folder: Path) -> None:
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "quantization_config": {"quant_method": "gptq"}}))
    changes = {"model": {"path": str(folder), "config": None}, "train": {"precision": "bf16"}}
    run = new_run("run", lora={"quantize": "nf4"}, **changes)
    with pytest.raises(ConfigError, match=r"is quantized already \(gptq\)"):
        recipe.checked(read_yaml(run.path / "config.yaml"), run.path, 1, "x")


def test_bitsandbytes_that_cannot_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    with monkeypatch.context() as patch:
        patch.setattr("bitsandbytes.matmul_4bit", Mock(side_effect=RuntimeError("no kernel\nfor this device")))
        with pytest.raises(ConfigError, match=r"bitsandbytes \(.*\) cannot compute on cpu: no kernel for this device$"):
            four_bit.check_device(cpu)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "bitsandbytes", None)
        with pytest.raises(ConfigError, match="pip install bitsandbytes"):
            four_bit.check_device(cpu)
