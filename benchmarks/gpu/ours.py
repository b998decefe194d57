"""Outlast's own training as the parts measure it: its models, engines, batches, and its own formula of MFU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch

from benchmarks.case import LR
from benchmarks.case import Case as AnyCase
from benchmarks.gpu.place import Place
from trainer.data.batches import MicroBatch, RankBatch
from trainer.engines.ddp.settings import Ddp
from trainer.engines.deepspeed.settings import Deepspeed
from trainer.engines.engine import make_engine
from trainer.engines.fsdp.settings import Fsdp
from trainer.engines.shard import Shard
from trainer.model import recompute
from trainer.model.model import skeleton
from trainer.model.weights import hollow
from trainer.plan import batch_layout
from trainer.records.throughput import Throughput
from trainer.schema import TrainConfig
from trainer.shape import Model

_LLAMA = {
    "model_type": "llama",
    "vocab_size": 128_256,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131_072,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
}
LLAMAS: dict[str, dict[str, Any]] = {  # Llama 3.2 1B and 3B, 3.1 8B
    "1B": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "tie_word_embeddings": True,
    },
    "3B": {
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 28,
        "num_attention_heads": 24,
        "tie_word_embeddings": True,
    },
    "8B": {
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
}
_TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
}


@dataclass(frozen=True)
class Case(AnyCase):
    def __str__(self) -> str:
        batch = f"b{self.micro}" + (f" x {self.accumulation}" if self.accumulation > 1 else "")
        return f"{self.size} T={self.tokens} {batch}"

    @property
    def how(self) -> str:
        engine = {Ddp: "ddp", Fsdp: "fsdp", Deepspeed: "deepspeed"}[type(self.engine)]
        return f"{self.precision}, {engine}, gradient checkpointing {self.recompute}"

    def at(self, place: Place) -> Case:
        """As it is where it runs."""
        if not place.reduced:
            return self
        tokens, micro, accumulation = min(self.tokens, 64), min(self.micro, 2), min(self.accumulation, 2)
        return replace(self, tokens=tokens, micro=micro, accumulation=accumulation)

    @property
    def step_tokens(self) -> int:
        return self.tokens * self.micro * self.accumulation


def shape(size: str, reduced: bool) -> dict[str, Any]:
    """A Hugging Face config."""
    return {**_LLAMA, **LLAMAS[size], **(_TINY if reduced else {})}


def settings(case: Case, place: Place) -> TrainConfig:
    return case.trained(Model(config=shape(case.size, place.reduced), attention=cast(Any, place.attention)))


class Ours:
    """The model in its engine, with random weights: drawn where they lie, since the model's own rule draws on the CPU,
    which takes minutes."""

    def __init__(self, case: Case, place: Place) -> None:
        self.case, self.place, self.steps = case, place, 0
        self.settings = settings(case, place)
        train = self.settings.train
        dtype = torch.bfloat16 if train.bf16_weights else torch.float32
        self.model: Any = hollow(self.settings.model, train.seed, dtype)
        recompute.enable(self.model, train)
        layout = batch_layout(train, 1)
        self.engine = make_engine(self.settings, layout, self.model, place.runtime)
        self.engine.module.train()
        draw(self.engine.shards(), place.device)
        self.engine.refresh()

    def batch(self, lengths: Sequence[int] | None = None) -> RankBatch:
        """Random tokens, all of them targets. `lengths`: of the documents laid end to end in every sequence."""
        case, vocabulary = self.case, self.model.config.vocab_size
        made = [micro_batch(case.micro, case.tokens, vocabulary, lengths, seed) for seed in range(case.accumulation)]
        return rank_batch(made)

    def step(self, batch: RankBatch) -> float:
        """As trainer/run.py makes it."""
        self.pass_(batch)
        self.steps += 1
        norm = float(self.engine.step(LR, self.steps))
        self.engine.stopwatch.lap()
        return norm

    def pass_(self, batch: RankBatch) -> float:
        """Forward and backward of a global batch: its loss."""
        self.engine.stopwatch._marks.clear()  # a pass that failed has left a beginning without its end
        last = len(batch.micro_batches) - 1
        loss = sum(
            self.engine.backward(micro.to(self.place.device), batch.valid_tokens, last=index == last).double()
            for index, micro in enumerate(batch.micro_batches)
        )
        return float(loss)

    def forget_gradients(self) -> None:
        for parameter in self.model.parameters():
            parameter.grad = None

    def close(self) -> None:
        """Its memory is free, once its owner has let it go as well."""
        del self.engine, self.model
        self.place.free()


def micro_batch(rows: int, tokens: int, vocabulary: int, lengths: Sequence[int] | None, seed: int) -> MicroBatch:
    generator = torch.Generator().manual_seed(seed)
    ids, labels = (torch.randint(0, vocabulary, (rows, tokens), generator=generator) for _ in range(2))
    positions = torch.cat([torch.arange(length) for length in lengths or [tokens]])
    return MicroBatch.of(ids, labels, positions.expand(rows, -1).contiguous())


def rank_batch(micro_batches: list[MicroBatch]) -> RankBatch:
    tokens = sum(micro.labels.numel() for micro in micro_batches)
    pairs = sum(int(micro.documents.bounds.diff().long().square().sum()) for micro in micro_batches)
    return RankBatch(micro_batches, tokens, 0, pairs)


@torch.no_grad()
def draw(shards: Any, device: torch.device) -> None:
    """Normal, 0.02 wide; ones where a parameter has one dimension (norms)."""
    generator = torch.Generator(device).manual_seed(0)
    shard: Shard
    for shard in shards:
        weights: Any = shard.tensors["weights"]
        if len(shard.shape) == 1:
            weights.fill_(1)
        elif weights.device == device:
            weights.normal_(0, 0.02, generator=generator)
        else:
            weights.copy_(torch.randn(weights.numel(), generator=generator, device=device).mul_(0.02))


class Speed:
    """Outlast's own formula over steps of whoever trains a case's model."""

    def __init__(self, case: Case, place: Place) -> None:
        config = settings(case, place)
        self._case = case
        self._throughput = Throughput(config, skeleton(config.model), place.runtime)

    def of(self, seconds: float) -> dict[str, float]:
        """`tokens_per_second` and, where the device's peak is known, `mfu`; every sequence is one document."""
        tokens = self._case.step_tokens
        return self._throughput.saw_step(seconds, 0.0, tokens, tokens * self._case.tokens)
