"""What others have published of their own trainers, beside the plan of the same training: `python -m
benchmarks.plan.published` prints the table of docs/plan.md. Torch-free, and measures nothing.

No line here is one that the plan's own table of MFU is made of (trainer/plan/devices.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks.case import Case
from trainer.engines.ddp.settings import Ddp
from trainer.engines.fsdp.settings import Fsdp
from trainer.plan import layouts
from trainer.plan.architecture import read
from trainer.plan.devices import device
from trainer.plan.layouts import Planned
from trainer.shape import Model

TITAN = "pytorch/torchtitan benchmarks, b5bcd76"
TUNE = "pytorch/torchtune README, bd2a0fc"
A_NODE = 8


def llama(
    hidden: int, inner: int, layers: int, heads: int, groups: int, vocabulary: int, tied: bool = False
) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
    }


SHAPES = {
    "Llama 3.2 3B": llama(3072, 8192, 28, 24, 8, 128_256, tied=True),
    "Llama 3.1 8B": llama(4096, 14_336, 32, 32, 8, 128_256),
    "Llama 3 70B": llama(8192, 28_672, 80, 64, 8, 128_256),
    "Llama 2 7B": llama(4096, 11_008, 32, 32, 32, 32_000),
    "Granite 7B": llama(4096, 11_008, 32, 32, 32, 32_000),
    "SmolLM 1.7B": llama(2048, 8192, 24, 32, 32, 49_152, tied=True),
}


Errors = tuple[float | None, float | None]
"""Of the planned memory and of the planned hours; None: not published."""


@dataclass(frozen=True)
class Published:
    case: Case
    gpus: int
    device: str
    """As --gpus-of calls it."""
    source: str
    memory: float | None = None
    """GiB of a GPU."""
    tokens: float | None = None
    """A second, of a GPU."""
    mfu: float | None = None
    """Where no tokens a second are published."""
    differs: str = ""
    """Why the plan is off by more than 10 %."""
    name: str = ""

    def planned(self) -> Planned:
        config, nodes = SHAPES[self.case.size], max(1, self.gpus // A_NODE)
        settings = self.case.trained(Model(config=config), self.gpus)
        return layouts.planned(read(config), settings, nodes, self.gpus // nodes, device(self.device), 1)

    def errors(self) -> Errors:
        plan = self.planned()
        memory = plan.memory.gpu / 2**30 / self.memory - 1 if self.memory else None
        reached = self.tokens
        if self.mfu is not None:
            reached = self.mfu * plan.device.flops / read(SHAPES[self.case.size]).flops(self.case.tokens)
        return memory, reached * plan.time.step / plan.time.tokens * self.gpus - 1 if reached else None


def fsdp(size: str, tokens: int, micro: int, recompute: Any) -> Case:
    return Case(size, tokens, micro, recompute=recompute, engine=Fsdp())


def alone(recompute: Any) -> Case:
    return Case("Llama 3.2 3B", 4096, 2, precision="bf16", recompute=recompute, engine=Ddp())


EIGHT, COMPILED = fsdp("Llama 3.1 8B", 8192, 2, "selective"), "theirs is compiled"
PUBLISHED = [
    Published(EIGHT, 8, "h100-94", TITAN, 82.4, 5762),
    Published(
        *(EIGHT, 8, "h100-94", TITAN, 77.0, 6667),
        differs=f"{COMPILED}; the table's MFU is of an eager trainer",
        name="compiled",
    ),
    Published(EIGHT, 128, "h100-94", TITAN, 67.0, 5605),
    Published(fsdp("Llama 3.1 8B", 8192, 1, "selective"), 64, "a100-80", "an older page of torchtitan's", None, 2904),
    Published(
        *(fsdp("Llama 3 70B", 8192, 1, True), 64, "a100-80", "an older page of torchtitan's", None, 331),
        differs="the table's 50 % with less recomputed, and 27 % taken off for the whole of it",
    ),
    Published(
        *(alone(False), 1, "a100-80", TUNE, 60.0, 7075),
        differs="its logits stand whole: 8,192 x 128,256 in bf16 and fp32",
        name="packed",
    ),
    Published(
        *(alone(False), 1, "a100-80", TUNE, 42.9, 9174),
        differs=f"{COMPILED}, norms and activations fused; ours is planned eager",
        name="compiled, loss in chunks",
    ),
    Published(
        *(alone(True), 1, "a100-80", TUNE, 24.9, 7210),
        differs=COMPILED,
        name="compiled",
    ),
    Published(fsdp("Granite 7B", 4096, 8, True), 4, "a100-80", "Hugging Face, from DeepSpeed to FSDP", None, 3158.7),
    Published(
        *(fsdp("Llama 3 70B", 8192, 1, True), 64, "h100-80", "NVIDIA NeMo AutoModel", None, 867),
        differs="its own kernels, context parallel; what it recomputes is not said",
    ),
    Published(fsdp("Llama 2 7B", 4096, 1, False), 64, "h100-80", "huggingface/picotron", mfu=0.38),
    Published(
        *(Case("SmolLM 1.7B", 2048, 1), 8, "h100-80", "huggingface/picotron"),
        mfu=0.50,
        differs="the table's 1B was an MPT of 2024",
    ),
]


def rows(found: Sequence[Errors]) -> Iterator[str]:
    for one, (memory, hours) in zip(PUBLISHED, found, strict=True):
        case = one.case
        mode = {False: "", True: ", all recomputed", "selective": ", selective"}[case.recompute]
        what = f"{case.size}, T={case.tokens} b{case.micro}{mode}{f' ({one.name})' if one.name else ''}"
        reached = f"{one.tokens:,.0f}" if one.tokens else f"MFU {one.mfu:.0%}"
        yield f"| {what}, {one.gpus} x {one.device} | {one.memory or ''} | {_percent(memory)} | {reached} | " + (
            f"{_percent(hours)} | {one.differs} | {one.source} |"
        )


def _percent(error: float | None) -> str:
    return "" if error is None else f"{100 * error:+.0f} %"


def page() -> str:
    found = [one.errors() for one in PUBLISHED]
    memory = median(abs(error) for error, _ in found if error is not None)
    hours = median(abs(error) for _, error in found if error is not None)
    titles = ("", "GiB of a GPU", "plan", "tokens a second of a GPU", "plan's hours", "what differs", "source")
    head = f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}"
    return "\n".join([head, *rows(found), f"| median | | {memory:.0%} | | {hours:.0%} | | |"])


if __name__ == "__main__":
    print(page())
