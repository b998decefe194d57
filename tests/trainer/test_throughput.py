"""The numbers of a step: what a token costs, what a device can do, what is told."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.trainer.ranks import Run
from trainer.config import resolve
from trainer.plan.devices import peak_flops
from trainer.records import throughput
from trainer.records.throughput import Cost, Throughput, in_words
from trainer.schema import TrainConfig

LLAMA = {"model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32, "vocab_size": 128256}
MODELS: dict[str, dict[str, Any]] = {
    "Llama-3.2-1B": {
        **LLAMA,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_key_value_heads": 8,
        "tie_word_embeddings": True,
    },
    "Llama-2-7B": {**LLAMA, "hidden_size": 4096, "intermediate_size": 11008, "vocab_size": 32000},
    "Llama-3.1-8B": {**LLAMA, "hidden_size": 4096, "intermediate_size": 14336, "num_key_value_heads": 8},
    "Llama-3.1-70B": {
        **LLAMA,
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
    },
}


def empty(values: dict[str, Any]) -> Any:
    """The model without its numbers."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(**values))


@pytest.mark.parametrize(
    ("name", "matmul", "context", "flops"),
    [
        ("Llama-3.2-1B", 1.236e9, 2048, 8.22e9),
        ("Llama-2-7B", 6.607e9, 2048, 42.86e9),
        ("Llama-3.1-8B", 7.505e9, 2048, 48.25e9),
        ("Llama-3.1-8B", 7.505e9, 8192, 57.91e9),
        ("Llama-3.1-70B", 69.50e9, 8192, 481.4e9),
    ],
)
def test_what_a_token_costs(name: str, matmul: float, context: int, flops: float) -> None:
    cost = Cost.of(empty(MODELS[name]))
    assert cost is not None
    assert cost.matmul == pytest.approx(matmul, rel=5e-4)
    assert cost.flops(context) == pytest.approx(flops, rel=5e-4)


def test_a_heads_dimension_of_its_own_counts_and_experts_are_not_guessed() -> None:
    small = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    cost = Cost.of(empty({"model_type": "qwen3", **small, "head_dim": 32, "vocab_size": 64}))
    assert cost is not None and cost.attention == 3 * 4 * 32
    assert Cost.of(empty({"model_type": "mixtral", **small, "vocab_size": 64})) is None


@pytest.mark.parametrize(
    ("device", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989.4e12),
        ("NVIDIA GH200 480GB", 989.4e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("Tesla V100-SXM2-32GB", 125e12),
        ("Tesla V100-PCIE-16GB", 112e12),
        ("AMD Instinct MI250X / MI250", 191.5e12),
        ("AMD Instinct MI300X", 1307e12),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("NVIDIA RTX A4000", None),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_a_device_is_known_by_its_name(device: str, peak: float | None) -> None:
    assert peak_flops(device) == peak


SHAPE = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 64, "vocab_size": 64}
WORLD, SEQUENCES, LENGTH = 4, 8, 1000


def settings(precision: str = "bf16", **more: Any) -> TrainConfig:
    return resolve(
        {
            "name": "x",
            "model": {"config": SHAPE, "tokenizer": "t"},
            "data": {"train": ["a"], "seq_len": LENGTH},
            "train": {"global_batch_size": SEQUENCES, "steps": 1, "precision": precision},
            "optim": {"lr": 1.0},
            **more,
        },
        "x",
    )


def meter(monkeypatch: pytest.MonkeyPatch, kind: str, precision: str = "bf16", **more: Any) -> Throughput:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    stats = {"reserved_bytes": {"all": {"peak": 3 << 30}}}
    monkeypatch.setattr(torch.cuda, "memory_stats_as_nested_dict", lambda: stats)
    runtime: Any = SimpleNamespace(device=torch.device(kind), world_size=WORLD)
    return Throughput(settings(precision, **more), empty(SHAPE), runtime)


def test_mfu_is_by_the_lengths_of_the_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    cost = Cost.of(empty(SHAPE))
    assert cost is not None
    share = SEQUENCES // WORLD
    for documents, context in ((1, LENGTH), (10, LENGTH / 10)):
        pairs = share * documents * (LENGTH // documents) ** 2
        values = meter(monkeypatch, "cuda").saw_step(0.5, 0.25, 6000, pairs)
        assert values["tokens_per_second"] == pytest.approx(8000 / 0.75, rel=1e-4)
        assert values["useful_tokens_per_second"] == 8000
        assert values["mfu"] == pytest.approx(cost.flops(context) * 8000 / 0.75 / (4 * 989.4e12), rel=1e-4)
        assert values["data_wait_seconds"] == 0.25 and values["memory_bytes"] == pytest.approx(3 << 30, rel=1e-4)
        assert in_words(values) == f"10,667 tokens/s  MFU {values['mfu']:.1%}"
    adapters = meter(monkeypatch, "cuda", lora={"r": 4}).saw_step(0.5, 0.25, 6000, pairs)
    assert adapters["mfu"] == pytest.approx(values["mfu"] * 2 / 3, rel=1e-4)  # as the plan counts it
    assert "mfu" not in meter(monkeypatch, "cuda", "fp32").saw_step(0.5, 0.0, 6000, 1)
    assert "mfu" not in meter(monkeypatch, "cpu").saw_step(0.5, 0.0, 6000, 1)


def test_the_last_steps_alone_are_ranked(monkeypatch: pytest.MonkeyPatch) -> None:
    speed = meter(monkeypatch, "cpu")
    for seconds in (*[100.0] * 50, *range(1, throughput.RECENT + 1)):
        values = speed.saw_step(seconds, 0.0, 1, 1)
    assert (values["seconds_p50"], values["seconds_p95"]) == (100.5, 191)


def test_the_numbers_stand_in_the_events_and_on_the_board(new_run: Callable[..., Run]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from trainer.records.board import tag

    run = new_run("run", train={"steps": 5}, tensorboard=True)
    assert run.go(1) == [0], run.log()
    names = ["loss", "lr", "grad_norm", "tokens_per_second", "useful_tokens_per_second"]
    names += ["seconds_p50", "seconds_p95", "data_wait_seconds", "memory_bytes"]
    board = EventAccumulator(str(run.path / "tensorboard")).Reload()
    for name in names:
        shown = [(event.step, event.value) for event in board.Scalars(tag(name))]
        assert shown == [(step, pytest.approx(value, rel=1e-6)) for step, value in run.history(name)]
    step = run.events("step")[-1]
    assert step["tokens_per_second"] == pytest.approx(12 * 16 / (step["seconds"] + step["data_wait_seconds"]), rel=1e-4)
    assert step["memory_bytes"] > 50e6 and "mfu" not in step
