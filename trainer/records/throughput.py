"""How fast the training is: the numbers of a step, as rank 0 sees them, without a word to the other ranks.

MFU counts what the model needs, forward and backward; what gradient checkpointing computes again does not count.
"""

from __future__ import annotations

import resource
from bisect import bisect_left, insort
from collections import deque
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from trainer.model.four_bit import elements
from trainer.plan.devices import peak_flops
from trainer.runtime import Runtime
from trainer.schema import TrainConfig
from trainer.stop.lead import percentile_95

RECENT = 200  # steps whose times are ranked

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


def in_words(speed: dict[str, float]) -> str:
    """The numbers of a step that stand in its line of the log."""
    mfu = f"  MFU {speed['mfu']:.1%}" if "mfu" in speed else ""
    return f"{speed['tokens_per_second']:,.0f} tokens/s{mfu}"


@dataclass(frozen=True)
class Cost:
    """What a token costs in forward and backward."""

    matmul: int
    """Parameters in matrix products: all but an input embedding of its own."""
    attention: int
    """Layers x heads x a head's dimension."""

    def flops(self, context: float) -> float:
        """Of one token that attends to `context` tokens: the length of its document, its mean in packed data."""
        return 6 * self.matmul + 12 * self.attention * context

    @classmethod
    def of(cls, model: Any) -> Cost | None:
        """Of a whole model, before an engine spreads it. None: a token uses a part of it (experts), or none of this
        is known of its kind."""
        config = model.config.get_text_config()
        layers, heads, width = (
            getattr(config, key, None) for key in ("num_hidden_layers", "num_attention_heads", "hidden_size")
        )
        if not (layers and heads and width) or any(getattr(config, key, None) for key in _EXPERTS):
            return None
        inputs, outputs = model.get_input_embeddings().weight, model.get_output_embeddings()
        tied = outputs is not None and outputs.weight is inputs
        matmul = sum(map(elements, model.parameters())) - (0 if tied else inputs.numel())
        return cls(matmul, layers * heads * (getattr(config, "head_dim", None) or width // heads))


class Throughput:
    """Over one attempt: another may run on other devices."""

    def __init__(self, settings: TrainConfig, model: torch.nn.Module, runtime: Runtime) -> None:
        self._cuda, self._world_size = runtime.device.type == "cuda", runtime.world_size
        self._tokens = settings.train.global_batch_size * settings.data.seq_len  # of a step
        self._cost, self._products = Cost.of(model), settings.products
        known = self._cuda and settings.train.bf16_passes  # the table's peaks are no measure for fp32
        self._peak = peak_flops(torch.cuda.get_device_name(runtime.device)) if known else None
        self._seconds: deque[float] = deque()
        self._ranked: list[float] = []

    def saw_step(self, seconds: float, waited: float, valid_tokens: int, pairs: int) -> dict[str, float]:
        """The numbers of a step that took so many seconds, after it had waited for its batch.

        `valid_tokens`: of the global batch; `pairs`: sum of the squared lengths of this rank's documents, which stands
        for the other ranks'.
        """
        if len(self._seconds) == RECENT:
            del self._ranked[bisect_left(self._ranked, self._seconds.popleft())]
        self._seconds.append(seconds)
        insort(self._ranked, seconds)
        pace = seconds + waited
        values = {
            "tokens_per_second": self._tokens / pace,
            "useful_tokens_per_second": valid_tokens / pace,
            "seconds_p50": median(self._ranked),  # a list in order takes no time to sort
            "seconds_p95": percentile_95(self._ranked),
            "data_wait_seconds": waited,
            "memory_bytes": float(self._memory()),
        }
        if self._cost and self._peak:
            context = pairs * self._world_size / self._tokens
            values["mfu"] = (
                self._cost.flops(context) * self._products * self._tokens / (pace * self._peak * self._world_size)
            )
        return {name: float(f"{value:.5g}") for name, value in values.items()}  # short lines in the events

    def _memory(self) -> int:
        """Peak of this attempt: what torch has reserved on the device; on the CPU, what the process has resident."""
        if not self._cuda:
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        # max_memory_reserved() flattens all of it first, which takes several times as long.
        return int(torch.cuda.memory_stats_as_nested_dict()["reserved_bytes"]["all"]["peak"])
