"""AdamW in less memory: it is torch's where nothing is rounded, its rounding is fair, and no sharding changes a bit."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from settings import ConfigError
from tests.trainer.test_loss import SMALL, batch
from trainer.engines import eight_bit, lean
from trainer.engines.deepspeed import zero
from trainer.engines.deepspeed.settings import Deepspeed
from trainer.engines.eight_bit import BLOCK, EightBit
from trainer.engines.lean import _Noise, rounded
from trainer.engines.optimizer import Optimizer, lean_adamw
from trainer.layout import BatchLayout
from trainer.model.loss import LossModel
from trainer.model.weights import build
from trainer.schema import Optim, Train, TrainConfig
from trainer.shape import Model
from trainer.sources import Data

CPU = torch.device("cpu")


def settings(precision: str, name: str = "adamw", **optim: Any) -> TrainConfig:
    train = Train(global_batch_size=2, steps=1, precision=precision, seed=3)  # type: ignore[arg-type]
    chosen = Optim(lr=1e-3, weight_decay=0.1, name=name, **optim)  # type: ignore[arg-type]
    return TrainConfig("x", Model(config={"model_type": "llama", **SMALL}), Data(["a"], 8), train, chosen)


# --- bytes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("precision", "name", "expected"),
    [
        ("fp32", "adamw", 16),
        ("master32", "adamw", 16),
        ("adam32", "adamw", 12),
        ("bf16", "adamw", 8),
        ("master32", "adamw_8bit", 8 + 2 * (1 + 4 / BLOCK)),
        ("bf16", "adamw_8bit", 4 + 2 * (1 + 4 / BLOCK)),
    ],
)
def test_bytes_of_a_parameter(precision: str, name: str, expected: float) -> None:
    config = settings(precision, name)
    dtype = torch.bfloat16 if config.train.bf16_weights else torch.float32
    model = build(config.model, 1, dtype)
    optimizer = Optimizer(model, config)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "master32"):
        total = LossModel(model)(batch())
    total.backward()
    held = [tensor for p in model.parameters() for tensor in (p, p.grad) if tensor is not None]
    for shard in optimizer.shards():
        for kind in ("exp_avg", "exp_avg_sq"):
            kept = shard.tensors[kind]
            held += [kept.codes, kept.scales] if isinstance(kept, EightBit) else [kept]
    size = sum(tensor.untyped_storage().nbytes() for tensor in held)
    assert size / sum(p.numel() for p in model.parameters()) == pytest.approx(expected, rel=0.02)


# --- steps ----------------------------------------------------------------------------------------------


def one_step(config: TrainConfig, parts: list[int], steps: int = 3) -> dict[str, torch.Tensor]:
    """Three steps on one parameter that is held in parts of these sizes, put together again."""
    generator = torch.Generator().manual_seed(0)
    dtype = torch.bfloat16 if config.train.bf16_weights else torch.float32
    weights = torch.randn(sum(parts), generator=generator).to(dtype)
    gradients = [torch.randn(sum(parts), generator=generator).to(dtype) for _ in range(steps)]
    held, start = [], 0
    for size in parts:
        optimizer = lean_adamw(config, CPU)
        state, mine = optimizer.new_state(size, CPU), weights[start : start + size].clone()
        for number, g in enumerate(gradients, 1):
            optimizer.begin(1e-3, number, torch.tensor(True))
            optimizer.step("w", mine, g[start : start + size], state, start, 0.1, torch.tensor(0.5))
        held.append((mine, state.exp_avg[:], state.exp_avg_sq[:]))
        start += size
    return {
        name: torch.cat(tensors)
        for name, tensors in zip(("weights", "exp_avg", "exp_avg_sq"), zip(*held, strict=True), strict=True)
    }


def test_in_fp32_it_is_torchs_adamw(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lean, "_STRETCH", 512)
    config = settings("fp32")
    made = one_step(config, [1300])
    generator = torch.Generator().manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(1300, generator=generator))
    adamw = torch.optim.AdamW([parameter], lr=1e-3, betas=config.optim.betas, eps=1e-8, weight_decay=0.1)
    for _ in range(3):
        parameter.grad = torch.randn(1300, generator=generator) * 0.5
        adamw.step()
    torch.testing.assert_close(made["weights"], parameter.detach(), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(made["exp_avg_sq"], adamw.state[parameter]["exp_avg_sq"], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("precision", ["adam32", "bf16"])
def test_no_sharding_changes_a_bit(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lean, "_STRETCH", 256)
    one = one_step(settings(precision), [1300])
    for parts in ([650, 650], [1, 999, 300], [0, 1300]):
        other = one_step(settings(precision), parts)
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(("precision", "name"), [("adam32", "adamw"), ("bf16", "adamw"), ("bf16", "adamw_8bit")])
def test_a_step_that_is_not_finite_changes_no_bit(precision: str, name: str) -> None:
    config = settings(precision, name)
    weights = torch.randn(1300, generator=torch.Generator().manual_seed(0)).bfloat16()
    optimizer = lean_adamw(config, CPU)
    state, seen = optimizer.new_state(1300, CPU), []
    for number, finite in enumerate((True, False), 1):
        gradient = torch.full((1300,), 0.5 if finite else torch.nan, dtype=torch.bfloat16)
        optimizer.begin(1e-3, number, torch.tensor(finite))
        optimizer.step("w", weights, gradient, state, 0, 0.1, torch.tensor(1.0))
        seen.append((weights.clone(), state.exp_avg[:], state.exp_avg_sq[:], state.step.clone()))
    assert all(torch.equal(before, after) for before, after in zip(*seen, strict=True)) and state.step == 1


def test_another_seed_or_step_rounds_otherwise() -> None:
    noise = [_Noise(seed, step, name, 0, 1000, CPU).bits("weights") for seed, step, name in
             ((1, 1, "a"), (2, 1, "a"), (1, 2, "a"), (1, 1, "b"))]  # fmt: skip
    assert len({tuple(bits.tolist()) for bits in noise}) == 4


# --- rounding -------------------------------------------------------------------------------------------


@given(st.floats(-(2.0**100), 2.0**100, width=32))
def test_a_number_is_rounded_to_one_of_its_neighbours_and_fairly(value: float) -> None:
    count = 20_000
    values = torch.full((count,), value)
    bits = _Noise(5, 7, "w", 0, count, CPU).bits("weights")
    assert int(bits.min()) >= 0 and int(bits.max()) < 65536
    made = rounded(values, bits).double()
    exact = values[0].double()
    cut = (values[:1].view(torch.int32) & -65536).view(torch.float32)  # toward 0
    away = (cut.view(torch.int32) + 65536).view(torch.float32)
    near, far = cut.double()[0], away.double()[0]
    assert bool(((made == near) | (made == far)).all())  # all may be the one, where the number lies close to it
    gap = abs(float(far - near))
    assert abs(float(made.mean() - exact)) <= 5 * gap / math.sqrt(count)


def test_what_is_bf16_already_stays() -> None:
    values = torch.randn(1000).bfloat16()
    assert torch.equal(rounded(values.float(), torch.full((1000,), 65535, dtype=torch.int32)), values)


def test_a_step_that_is_too_small_for_bf16_is_not_lost() -> None:
    """1 - 1e-4 is 1 in bf16: rounded to the nearest, no step would ever move it."""
    weights = torch.ones(20_000, dtype=torch.bfloat16)
    for step in range(10):
        bits = _Noise(0, step, "w", 0, len(weights), CPU).bits("weights")
        weights = rounded(weights.float() - 1e-4, bits)
    assert float(weights.double().mean()) == pytest.approx(1 - 1e-3, abs=1e-4)


# --- eight bits -----------------------------------------------------------------------------------------


@given(st.integers(1, 1000), st.booleans(), st.integers(0, 2**32), st.floats(1e-20, 1e10))
def test_eight_bits_are_near_and_stay_when_they_are_written_again(
    count: int, signed: bool, seed: int, scale: float
) -> None:
    values = torch.randn(count, generator=torch.Generator().manual_seed(seed)) * scale
    values = values if signed else values.abs()
    kept = EightBit(count, signed, CPU)
    assert torch.equal(kept[:], torch.zeros(count))
    kept.copy_(values)
    read = kept[:]
    largest = torch.nn.functional.pad(values, (0, -count % BLOCK)).view(-1, BLOCK).abs().amax(1)
    allowed = largest.repeat_interleave(BLOCK)[:count] * 0.03
    assert bool(((read - values).abs() <= allowed).all())
    codes, scales = kept.codes.clone(), kept.scales.clone()
    kept.copy_(read)
    assert torch.equal(kept.codes, codes) and torch.equal(kept.scales, scales)
    assert torch.equal(kept[3 : count - 3], read[3 : count - 3])


def test_the_table_has_256_values_of_which_zero_and_the_largest_are_exact() -> None:
    for signed in (True, False):
        table, between = eight_bit._table(signed, CPU)
        assert len(table) == len(table.unique()) == 256 and len(between) == 255
        assert 0.0 in table and table[-1] == 1.0 and float(table[0]) == pytest.approx(-0.993 if signed else 0, abs=1e-3)


# --- who cannot -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("precision", "name"), [("adam32", "adamw"), ("bf16", "adamw"), ("master32", "adamw_8bit")])
def test_deepspeed_is_refused_what_it_cannot_do(precision: str, name: str) -> None:
    config = settings(precision, name)
    engine = Deepspeed({"zero_optimization": {"stage": 2}})
    chosen = TrainConfig(config.name, config.model, config.data, config.train, config.optim, engine=engine)
    with pytest.raises(ConfigError, match=f"not with train.precision={precision} and optim.name={name}"):
        zero.complete(chosen, BatchLayout(2, 1, 1), 32)


def test_selective_checkpointing_is_refused_under_zero_3() -> None:
    engine = Deepspeed({"zero_optimization": {"stage": 3}})
    train = Train(global_batch_size=2, steps=1, precision="fp32", gradient_checkpointing="selective")
    config = settings("fp32")
    chosen = TrainConfig(config.name, config.model, config.data, train, config.optim, engine=engine)
    with pytest.raises(ConfigError, match="gradient_checkpointing=selective: ZeRO 3 gathers"):
        zero.complete(chosen, BatchLayout(2, 1, 1), 32)
