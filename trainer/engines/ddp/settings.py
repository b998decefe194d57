"""What a recipe says of ddp. Torch-free."""

from __future__ import annotations

from settings import Struct


class Ddp(Struct, frozen=True, tag_field="kind", tag="ddp"):
    """Every rank holds everything; gradients are summed."""

    @property
    def words(self) -> str:
        """The engine's name, and of its settings what decides where and in which order it sums."""
        return "ddp"

    @property
    def offloads(self) -> tuple[bool, bool]:
        """Whether the optimizer's state lies elsewhere than on the GPU, and whether the weights do."""
        return False, False
