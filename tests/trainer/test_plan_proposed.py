"""What a plan reads, and what it proposes, beside what submit and the trainer make of the same words."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

import launch
from settings import dump_yaml
from tests.trainer.test_plan import LLAMA_8B
from trainer import config
from trainer.plan.length import length
from trainer.stages import Course


def planned_here(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert launch.main(["plan", "sft.yaml", *words, "--json"]) in (0, 78)
    told = capsys.readouterr()
    assert told.out, told.err
    said: dict[str, Any] = json.loads(told.out)
    return said


def test_what_is_proposed_is_what_typing_it_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever the recipe says of its engine itself."""
    monkeypatch.chdir(tmp_path)
    ds = {"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": 4}
    for engine, train in (
        ({"kind": "fsdp", "hybrid": True, "reshard": False, "layers": ["LlamaDecoderLayer"]}, {}),
        (
            {"kind": "fsdp", "offload": True, "reduce_each": True},
            {"gradient_checkpointing": True, "activation_offload": True},
        ),
        ({"kind": "ddp"}, {"micro_batch_size": 4}),
        ({"kind": "deepspeed", "config": ds}, {}),
        ({"kind": "fsdp", "config": {"fsdp": "hybrid_shard offload"}}, {}),
        (
            {"kind": "deepspeed", "config": {"zero_optimization": {"stage": 2}, "train_batch_size": 128}},
            {"global_batch_size": None},
        ),
    ):
        tree = {
            "model": {"config": LLAMA_8B, "tokenizer": "."},
            "data": {"train": ["data.jsonl"], "seq_len": 2048},
            "train": {key: value for key, value in {"steps": 100, "global_batch_size": 128, **train}.items() if value},
            "optim": {"lr": 1e-5},
            "engine": engine,
        }
        Path("sft.yaml").write_text(dump_yaml(tree))
        said = planned_here(capsys, "--nodes", "2", "--gpus", "8", "--gpus-of", "h100-80")
        assert len(said["layouts"]) > 1
        for one in [*said["layouts"][:4], said["smallest"]]:
            typed = shlex.split(" ".join(one["words"]))
            again = planned_here(capsys, "--gpus-of", "h100-80", *typed)
            assert again["plan"]["gpu_parts"] == one["gpu_parts"] and again["plan"]["fits"], one["words"]


def test_a_plan_reads_what_submit_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Others' settings, in the recipe and typed."""
    monkeypatch.chdir(tmp_path)
    Path(tmp_path / "ds.json").write_text(json.dumps({"zero_optimization": {"stage": 2}}))
    (tmp_path / "tokens.txt").write_text("<|form|>\n")
    tree = {
        "model": {"config": LLAMA_8B, "tokenizer": "."},
        "data": {"train": ["data.jsonl"], "seq_len": 2048},
        "train": {"steps": 100, "global_batch_size": 128},
        "optim": {"lr": 1e-5},
        "engine": {"kind": "fsdp", "config": {"fsdp": "full_shard"}},
    }
    (tmp_path / "sft.yaml").write_text(dump_yaml(tree))
    for words in (
        [],
        ["engine.kind=deepspeed", f"engine.config={tmp_path}/ds.json"],
        [f"model.new_tokens={tmp_path}/tokens.txt"],
    ):
        assert planned_here(capsys, *words)["plan"]


def test_passes_of_a_mixture_are_those_of_its_largest_source(tmp_path: Path) -> None:
    for name, size in (("domain", 1000), ("general", 100_000)):
        (tmp_path / f"{name}.jsonl").write_text("x" * 4 * 512 * size)
    sources = {name: {"files": [str(tmp_path / f"{name}.jsonl")]} for name in ("domain", "general")}
    stage = {"name": "one", "mixture": {"domain": 0.8, "general": 0.2}, "epochs": 1}
    tree = {
        "model": {"config": LLAMA_8B, "tokenizer": "."},
        "data": {"train": sources, "seq_len": 512},
        "train": {"global_batch_size": 16},
        "optim": {"lr": 1e-5},
        "stages": [stage, {"name": "two", "steps": 10}, {"name": "all", "epochs": 2}],
    }
    mixed = config.resolve({"name": "x", **tree}, "x")
    expected = [1000 / 0.8, 10 * 16, 2 * 101_000]
    found = length(mixed, tmp_path / "cache")
    assert found is not None and found.steps == sum(int(one) // 16 for one in expected)
    assert found.steps == Course(mixed, {"domain": 1000, "general": 100_000}).steps
    told = length(mixed, tmp_path / "cache", "1000x512")
    assert told is not None and told.steps == int(1000 / 0.8) // 16 + 10 + 2000 // 16
