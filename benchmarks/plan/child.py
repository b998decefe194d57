"""One rank of a case: two steps, and the most memory that they took above what was there before the model."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import torch
from msgspec.structs import replace

from benchmarks.case import LR
from benchmarks.gpu.ours import draw, micro_batch, rank_batch
from benchmarks.memory.measure import high_water
from benchmarks.plan.cases import CASES
from trainer.engines.engine import make_engine
from trainer.model import recompute
from trainer.model.weights import hollow
from trainer.plan import batch_layout
from trainer.runtime import Runtime, start
from trainer.schema import TrainConfig


def warm_up(settings: TrainConfig, runtime: Runtime) -> None:
    """What the libraries take at their first use: two steps of a tiny model of the same kind, on this rank alone."""
    assert settings.model.config is not None
    tiny = {
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "vocab_size": 64,
    }
    tiny |= {"num_key_value_heads": 1} if "num_key_value_heads" in settings.model.config else {}
    small = replace(settings.model, config={**settings.model.config, **tiny})
    steps(replace(settings, model=small, data=replace(settings.data, seq_len=16)), runtime)


def steps(settings: TrainConfig, runtime: Runtime) -> None:
    train = settings.train
    layout = batch_layout(train, runtime.world_size)
    model = hollow(settings.model, 0, torch.bfloat16 if train.bf16_weights else torch.float32)
    recompute.enable(model, train)
    engine = make_engine(settings, layout, model, runtime)
    engine.module.train()
    draw(engine.shards(), runtime.device)
    engine.refresh()
    assert settings.model.config is not None
    vocabulary, accumulation = settings.model.config["vocab_size"], layout.gradient_accumulation_steps
    made = [
        micro_batch(layout.micro_batch_size, settings.data.seq_len, vocabulary, None, seed)
        for seed in range(accumulation)
    ]
    batch = rank_batch(made)
    for number in (1, 2):
        for index, micro in enumerate(batch.micro_batches):
            engine.backward(micro, batch.valid_tokens * runtime.world_size, last=index == accumulation - 1)
        engine.step(LR, number)


if __name__ == "__main__":
    torch.set_num_threads(1)
    case = CASES[int(sys.argv[1])]
    import transformers.models.auto.modeling_auto  # noqa: F401  not to be counted

    runtime = start(Path(sys.argv[2]), 600.0)
    warm_up(case.settings, runtime)
    gc.collect()
    before = high_water()
    steps(case.settings, runtime)
    print(high_water() - before)
