"""How a global batch lies on the ranks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BatchLayout:
    """global_batch_size = micro_batch_size x gradient_accumulation_steps x data_parallel_size (sequences)."""

    micro_batch_size: int
    gradient_accumulation_steps: int
    data_parallel_size: int

    @property
    def global_batch_size(self) -> int:
        return self.micro_batch_size * self.gradient_accumulation_steps * self.data_parallel_size

    def __str__(self) -> str:
        return (
            f"global batch {self.global_batch_size} = {self.micro_batch_size} micro x "
            f"{self.gradient_accumulation_steps} accumulation x {self.data_parallel_size} ranks"
        )
