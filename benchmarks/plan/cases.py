"""What is planned and measured: shapes, batches, precision, what is recomputed, engines, 1 to 4 ranks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.case import Case as AnyCase
from trainer.engines.ddp.settings import Ddp
from trainer.engines.deepspeed.settings import Deepspeed
from trainer.engines.fsdp.settings import Fsdp
from trainer.plan import batch_layout
from trainer.plan.architecture import Architecture, read
from trainer.plan.memory import Memory, memory
from trainer.schema import EveryK, TrainConfig
from trainer.shape import Model

SHAPES: dict[str, tuple[str, int, int, int, dict[str, Any]]] = {  # kind, hidden, layers, vocabulary
    "7M": ("llama", 256, 6, 4096, {}),
    "12M": ("llama", 256, 4, 32_768, {"tie_word_embeddings": True}),
    "34M": ("llama", 512, 8, 8192, {"num_key_value_heads": 4}),
    "34M, Qwen 3": ("qwen3", 512, 8, 8192, {"num_key_value_heads": 4}),
    "20M, NeoX": ("gpt_neox", 512, 4, 8192, {}),
    "64M": ("llama", 768, 6, 16_384, {}),
}


@dataclass(frozen=True)
class Case(AnyCase):
    ranks: int = 1

    def __str__(self) -> str:
        engine = {Ddp: "ddp", Fsdp: "fsdp", Deepspeed: "ZeRO"}[type(self.engine)]
        if isinstance(self.engine, Deepspeed):
            engine += f" {self.engine.json['zero_optimization']['stage']}"
        more = f" x {self.accumulation}" if self.accumulation > 1 else ""
        kept = {False: "", True: ", recomputed", "selective": ", selective"}.get(
            self.recompute, ", every 2nd recomputed"
        )
        ranks = f" at {self.ranks}" if self.ranks > 1 else ""
        eight = ", 8 bits" if self.optimizer != "adamw" else ""
        return f"{self.size}, T={self.tokens} b{self.micro}{more}, {engine}{ranks}, {self.precision}{kept}{eight}"

    @property
    def config(self) -> dict[str, Any]:
        kind, hidden, layers, vocabulary, more = SHAPES[self.size]
        return {
            "model_type": kind,
            "hidden_size": hidden,
            "intermediate_size": 3 * hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": hidden // 64,
            "vocab_size": vocabulary,
            "max_position_embeddings": 8192,
            **({"head_dim": 64} if kind == "qwen3" else {}),
            **({"num_key_value_heads": hidden // 64} if kind != "gpt_neox" else {}),
            **more,
        }

    @property
    def settings(self) -> TrainConfig:
        return self.trained(Model(config=self.config), self.ranks)

    @property
    def model(self) -> Architecture:
        return read(self.config)

    def planned(self) -> Memory:
        settings = self.settings
        return memory(self.model, settings, batch_layout(settings.train, self.ranks), self.ranks, on_gpu=False)


def zero(stage: int) -> Deepspeed:
    return Deepspeed({"zero_optimization": {"stage": stage, "reduce_bucket_size": "auto"}})


CASES = [
    Case("7M", 1024, 8),
    Case("7M", 1024, 8, recompute=True),
    Case("7M", 1024, 8, recompute="selective"),
    Case("7M", 1024, 8, accumulation=2, recompute=EveryK(2)),
    Case("7M", 1024, 4, precision="fp32"),
    Case("7M", 1024, 8, precision="adam32"),
    Case("7M", 2048, 4, precision="bf16", recompute=True),
    Case("12M", 512, 4),
    Case("12M", 512, 4, recompute=True),
    Case("12M", 1024, 2, accumulation=2, precision="bf16"),
    Case("34M", 256, 4),
    Case("34M", 1024, 2, optimizer="adamw_8bit"),
    Case("34M", 128, 1, precision="fp32"),
    Case("34M, Qwen 3", 256, 4, recompute=True),
    Case("34M, Qwen 3", 512, 4, precision="adam32"),
    Case("20M, NeoX", 1024, 4, recompute="selective"),
    Case("64M", 256, 2, recompute=True),
    Case("64M", 512, 2, engine=Fsdp()),
    Case("34M", 512, 2, ranks=2),
    Case("34M", 512, 2, ranks=2, engine=Fsdp(), recompute="selective"),
    Case("64M", 512, 2, ranks=2, accumulation=2, engine=Fsdp(), recompute=True),
    Case("34M", 512, 2, ranks=4, engine=Fsdp()),
    Case("34M", 512, 2, ranks=2, engine=zero(2), recompute=True),
    Case("64M", 512, 2, ranks=2, engine=zero(3)),
]
