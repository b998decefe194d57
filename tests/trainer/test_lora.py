"""LoRA in the same loop: only the adapters are trained and saved, it resumes to the bit, and the export is peft's own merge."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from settings import ConfigError
from tests.trainer.check_loaded import assemble
from tests.trainer.ranks import Run
from tests.trainer.test_engines import DDP, FSDP, zero
from tests.trainer.test_loss import SMALL
from trainer import config, lora
from trainer.config import LORA_RATE, Lora, Model
from trainer.weights import build

NewRun = Callable[..., Run]


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft reads it
@pytest.mark.parametrize(
    ("engine", "world", "more"),
    [
        (FSDP, 2, {}),
        pytest.param(DDP, 2, {"tokens": [5, 9]}, marks=pytest.mark.nightly),
        pytest.param(DDP, 3, {"dropout": 0.1, "targets": ["q_proj", "v_proj"]}, marks=pytest.mark.nightly),
        pytest.param(zero(2), 2, {}, marks=pytest.mark.nightly),
        pytest.param(zero(3), 2, {}, marks=pytest.mark.nightly),
    ],
    ids=str,
)
def test_cut_resumed_and_merged(new_run: NewRun, engine: dict[str, Any], world: int, more: dict[str, Any]) -> None:
    shape = {"lora": {"r": 4, **more}, "train": {"steps": 12}, "engine": engine, "evaluation": {"every": 0}}
    whole, cut = new_run("whole", **shape), new_run("cut", **shape)
    assert whole.go(world) == [0] * world, whole.log()
    cut.stop_after(world, 3)
    assert cut.go(world) == [0] * world, cut.log()
    assert cut.history("loss", "grad_norm", "hash") == whole.history("loss", "grad_norm", "hash")
    assert cut.done()["sha256"] == whole.done()["sha256"]
    losses = [loss for _, loss in whole.history("loss")]
    assert losses[-1] < losses[0]
    saved = assemble(whole.path / "checkpoints" / whole.checkpoints()[-1])
    assert all("lora_" in key or "trainable_tokens" in key for key in saved) and saved
    assert_merged_as_peft_does(whole.path, saved)


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
    exported = AutoModelForCausalLM.from_pretrained(run / "export")
    merged.set_attn_implementation("sdpa")
    ids = torch.arange(3, 43)[None]
    with torch.no_grad():
        torch.testing.assert_close(exported.eval()(ids).logits, merged.eval()(ids).logits)


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
