"""What a recipe says of fsdp. Torch-free."""

from __future__ import annotations

from settings import Struct


class Fsdp(Struct, frozen=True, tag_field="kind", tag="fsdp"):
    """Weights, gradients and moments sharded over all ranks (torch fully_shard)."""

    reshard: bool = True
    """Free a layer's gathered weights after its forward pass (False: more memory, less communication)."""
    layers: list[str] = []
    """Class names of the units; default: those that the model names itself."""
    hybrid: bool = False
    """Shard inside each node and keep a replica on every node: less traffic between nodes, more memory."""
    offload: bool = False
    """Weights, gradients and moments lie in host memory, and the optimizer steps there."""
    reduce_each: bool = False
    """Sum the gradients over the ranks after each micro batch, not once a step: while a step gathers micro batches
    each rank then keeps its share of them alone (else 4 bytes a parameter), for more communication."""

    @property
    def words(self) -> str:
        chosen = {"hybrid": self.hybrid, "offload": self.offload, "reduce_each": self.reduce_each}
        return " ".join(["fsdp", *(word for word, is_set in chosen.items() if is_set)])

    @property
    def offloads(self) -> tuple[bool, bool]:
        """Whether the optimizer's state lies elsewhere than on the GPU, and whether the weights do."""
        return self.offload, self.offload
