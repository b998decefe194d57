"""DeepSpeed's JSON beside a recipe: what is derived, what is completed, and one line for every mistake."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from settings import ConfigError, merge
from trainer import config, recipe
from trainer.engines.deepspeed import zero
from trainer.layout import BatchLayout
from trainer.plan import batch_layout

RECIPE: dict[str, Any] = {
    "name": "x",
    "model": {"config": {"model_type": "llama"}, "tokenizer": "t"},
    "data": {"train": ["a.jsonl"], "seq_len": 8},
    "train": {"steps": 10, "global_batch_size": 48, "precision": "master32"},
    "optim": {"lr": 1e-5},
    "engine": {"kind": "deepspeed", "config": {"zero_optimization": {"stage": 3}}},
}
NVME = {"device": "nvme", "nvme_path": "/local", "pin_memory": True}


def settings(theirs: dict[str, Any], **changes: Any) -> config.TrainConfig:
    tree = {**merge(RECIPE, changes), "engine": {"kind": "deepspeed", "config": theirs}}
    return config.resolve(zero.with_batch(tree, 4), "recipe.yaml")


def complete(theirs: dict[str, Any], **changes: Any) -> dict[str, Any]:
    found = settings(theirs, **changes)
    return zero.complete(found, batch_layout(found.train, 4), hidden_size=64)


def test_auto_is_the_recipes_value_and_sizes_by_the_hidden_size() -> None:
    auto = dict.fromkeys(("gradient_clipping", zero.MICRO, zero.ACCUMULATION, zero.TOTAL), "auto")
    sizes = ("reduce_bucket_size", "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold")
    optimizer = {"type": "AdamW", "params": dict.fromkeys(("lr", "betas", "eps", "weight_decay"), "auto")}
    theirs = {**auto, "bf16": {"enabled": "auto"}, "optimizer": optimizer}
    theirs["zero_optimization"] = {"stage": 3, **dict.fromkeys(sizes, "auto"), "overlap_comm": True}
    assert complete(theirs) == {
        "train_micro_batch_size_per_gpu": 6,
        "gradient_accumulation_steps": 2,
        "train_batch_size": 48,
        "gradient_clipping": 1.0,
        "bf16": {"enabled": True},
        "zero_optimization": {
            "stage": 3,
            "reduce_bucket_size": 4096,
            "stage3_prefetch_bucket_size": 3686,
            "stage3_param_persistence_threshold": 640,
            "overlap_comm": True,
        },
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }


def test_what_it_says_of_disks_is_passed_through() -> None:
    zero_3 = {
        "stage": 3,
        "sub_group_size": 1e8,
        "offload_optimizer": NVME,
        "offload_param": {**NVME, "buffer_size": 1e8},
    }
    theirs = {"zero_optimization": zero_3, "aio": {"block_size": 262144, "use_gds": False}}
    found = complete(theirs)
    assert found["zero_optimization"] == zero_3 and found["aio"] == theirs["aio"]


def test_the_batch_that_it_fixes_is_the_runs() -> None:
    theirs = {zero.MICRO: 2, zero.ACCUMULATION: 8, "zero_optimization": {"stage": 2}}
    recipe = {
        **RECIPE,
        "train": {"steps": 10, "precision": "master32"},
        "engine": {"kind": "deepspeed", "config": theirs},
    }
    found = config.resolve(zero.with_batch(recipe, 4), "recipe.yaml")
    assert batch_layout(found.train, 4) == BatchLayout(2, 8, 4) and found.train.global_batch_size == 64
    # At another size the run keeps its global batch.
    again = zero.complete(found, batch_layout(found.train, 8), hidden_size=64)
    assert (again[zero.MICRO], again[zero.ACCUMULATION], again[zero.TOTAL]) == (2, 4, 64)


@pytest.mark.parametrize(
    ("theirs", "changes", "line"),
    [
        ({zero.MICRO: 2, zero.ACCUMULATION: 8}, {}, "train_micro_batch_size_per_gpu=2 x gradient_accumulation_steps=8 x 4 ranks = 64, but the recipe says train.global_batch_size=48: change one"),
        ({zero.TOTAL: 64}, {}, "train_batch_size=64, but the recipe says train.global_batch_size=48: change one"),
        ({zero.MICRO: 3}, {"train": {"micro_batch_size": 4}}, "train_micro_batch_size_per_gpu=3, but the recipe says train.micro_batch_size=4"),
        ({"gradient_clipping": 0.5}, {}, "gradient_clipping=0.5, but the recipe says optim.clip=1.0: change one"),
        ({"bf16": {"enabled": False}}, {}, "bf16.enabled=false, but the recipe says train.precision=master32"),
        ({"optimizer": {"params": {"lr": 1e-4}}}, {}, "optimizer.params.lr=0.0001, but the recipe says optim.lr=1e-05"),
        ({"optimizer": {"type": "Lamb"}}, {}, "optimizer.type=Lamb: this trainer steps by AdamW"),
        ({"scheduler": {"type": "WarmupLR"}}, {}, "the learning rate is the recipe's"),
        ({"fp16": {"enabled": True}}, {}, "fp16.enabled=true"),
        ({"zero_optimization": {"stage": 4}}, {}, "there are 0, 1, 2 and 3"),
        ({"zero_optimization": True}, {}, "zero_optimization=true: a section is expected"),
        ({"zero_optimization": {"stage": 3, "offload_optimizer": "cpu"}}, {}, 'zero_optimization.offload_optimizer="cpu": a section is expected'),
        ({"bf16": True}, {}, "bf16=true: a section is expected"),
        ({"optimizer": "AdamW"}, {}, 'optimizer="AdamW": a section is expected'),
        ({"zero_optimization": {"stage": 0}}, {}, "keeps no fp32 weights in bf16: take stage 1"),
        ({"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}}, {}, "offload_param.nvme_path is not given: name a folder of the nodes' own disks"),
        ({"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme", "nvme_path": "local"}}}, {}, "offload_param.nvme_path is \"local\": name a folder"),
        ({"zero_optimization": {"stage": 2, "offload_optimizer": NVME}}, {}, "offload_optimizer.device=nvme: ZeRO 3 alone swaps to a disk"),
        ({"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "disk"}}}, {}, "offload_optimizer.device=disk: take nvme, cpu, or none"),
        ({"zero_optimization": {"stage": 3, "offload_optimizer": {**NVME, "buffer_count": 3}}}, {}, "offload_optimizer.buffer_count=3: weights, gradient and both moments are moved at once: take 4"),
        ({"zero_optimisation": {"stage": 3}}, {}, "zero_optimisation: did you mean zero_optimization?"),
        ({"zero_optimization": {"stage": 3, "overlap_com": True}}, {}, "zero_optimization.overlap_com: did you mean overlap_comm?"),
        ({"zero_optimization": {"stage": 3, "sub_group_size": "auto"}}, {}, "zero_optimization.sub_group_size=auto has no meaning here"),
    ],
)  # fmt: skip
def test_one_line_for_every_mistake(theirs: dict[str, Any], changes: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as error:
        complete({"zero_optimization": {"stage": 2}, **theirs}, **changes)
    assert line in str(error.value) and "\n" not in str(error.value) and str(error.value).startswith("engine.config")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('{\n "bf16": {"enabled": true},\n}', "line 2: a comma with nothing after it: remove it"),
        ('{\n "bf16": {"enabled": True}\n}', "line 2: not JSON"),
        ('{"bf16": {}, "bf16": {}}', "the key 'bf16' stands twice"),
        ("[]", "an object of keys is expected"),
    ],
)
def test_a_file_that_is_no_json(tmp_path: Path, text: str, line: str) -> None:
    file = tmp_path / "ds.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=line):
        recipe.inlined({"engine": {"kind": "deepspeed", "config": str(file)}})
    file.write_text(json.dumps({"bf16": {"enabled": True}}))
    assert recipe.inlined({"engine": {"config": str(file)}})["engine"]["config"] == {"bf16": {"enabled": True}}


def test_its_keys_are_deepspeeds() -> None:
    """Every key that we let through is one that DeepSpeed takes."""
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    fields = DeepSpeedZeroConfig.model_fields
    assert set(fields) | {field.alias for field in fields.values()} >= zero._ZERO
