"""Bytes on each GPU and node at the moment when they are most, part by part. Torch-free.

A step has four moments that may be it: the loss (all activations stand), the first layer of the backward pass (and the
head's gradient), its last one (all gradients stand), the optimizer's step. The parts are those of the largest.
"""

from __future__ import annotations

from dataclasses import dataclass

from trainer.layout import BatchLayout
from trainer.plan.activations import Passes, kept
from trainer.plan.architecture import Architecture
from trainer.plan.state import Held, Parameters, Ranks, Sizes, held
from trainer.schema import TrainConfig

PIECE = {False: 1 << 24, True: 1 << 27}
"""Logits that stand at a time, on the CPU and on a GPU (trainer/model/loss.py)."""
CONTEXT = 0.6e9
"""Bytes of a CUDA context with torch's kernels: assumed, not measured here."""
NCCL = 0.6e9
"""Bytes of NCCL's channels where there are several ranks: assumed, not measured here."""
FRAGMENTS = 0.04
"""Share of what comes and goes in a step that the allocator holds and cannot use: assumed, not measured here."""
SCRATCH = 12e6
"""Bytes that the CPU's libraries take for bf16 products: 10 to 15 MB were seen (benchmarks/plan)."""
PROCESS = 3.0e9
"""Bytes of host memory of a rank's process with its libraries: assumed."""


@dataclass(frozen=True)
class Memory:
    device: dict[str, float]
    """Parts of one GPU's bytes, at the moment of their peak."""
    host: dict[str, float]
    """Parts of a node's bytes."""
    disk: float
    """Bytes of a node's own disk."""
    moment: str
    """When the peak is."""
    checkpoint: float
    """Bytes of one checkpoint."""

    @property
    def gpu(self) -> float:
        return sum(self.device.values())

    @property
    def node(self) -> float:
        return sum(self.host.values())


def memory(
    model: Architecture, settings: TrainConfig, layout: BatchLayout, local_ranks: int, on_gpu: bool = True
) -> Memory:
    """Of a run on `layout.data_parallel_size` ranks, `local_ranks` of them on a node."""
    ranks = Ranks.of(layout, local_ranks, on_gpu)
    state = held(model, settings, ranks)
    moments = _moments(model, settings, layout, state, on_gpu)
    moment = max(moments, key=lambda name: sum(moments[name].values()))
    parts = {**moments[moment], **_always(settings, model, ranks, state, on_gpu)}
    passing = sum(parts.get(name, 0.0) for name in PASSING)
    if on_gpu:
        parts["fragments"] = FRAGMENTS * passing
    saved = checkpoint_bytes(model, settings)
    return Memory(
        {name: size for name, size in parts.items() if size},
        _host(model, settings, layout, ranks, state, saved),
        state.disk * local_ranks,
        moment,
        saved,
    )


PASSING = ("gathered weights", "activations", "loss", "gradients on their way", "optimizer's step")
"""Parts that come and go in a step."""


def checkpoint_bytes(model: Architecture, settings: TrainConfig) -> float:
    sizes, trained = Sizes.of(settings), Parameters.of(model, settings).trained
    return (sizes.weights + sizes.moments) * trained


def _moments(
    model: Architecture, settings: TrainConfig, layout: BatchLayout, state: Held, on_gpu: bool
) -> dict[str, dict[str, float]]:
    sizes, tokens = Sizes.of(settings), layout.micro_batch_size * settings.data.seq_len
    passes = Passes(sizes.compute, state.between, on_gpu, settings.model.attention == "eager")
    one = kept(model, settings.train, passes, settings.data.seq_len)
    full = settings.lora is None
    head = model.embedding * full
    pieces = min(PIECE[on_gpu], tokens * model.vocabulary)
    logits = pieces * (8 + sizes.compute % 4)
    # The head's weights as they are multiplied, its gradient in fp32, what is added to that (on a CPU twice).
    added = (sizes.compute % 4 and 2 + 4 * (not on_gpu)) * head
    copies = sizes.compute * model.embedding * (state.between > sizes.compute) + 4.0 * head + added
    hidden = state.between * model.hidden * tokens
    always = {"weights": state.weights, "moments": state.moments}
    return {
        "the loss": {
            **always,
            "gradients": state.early,
            "gathered weights": state.forward,
            "activations": tokens * (one.layers + one.around),
            "loss": logits + copies + hidden,
        },
        "the first layer of the backward pass": {
            **always,
            "gradients": max(state.early, min(state.gradients, sizes.gradients * head)),
            "gathered weights": state.backward,
            "activations": tokens * (one.layers + one.again + one.around),
            "loss": hidden,
            "gradients on their way": tokens * one.backward,
        },
        "the last layer of the backward pass": {
            **always,
            "gradients": max(state.early, state.gradients - state.late),
            "gathered weights": state.backward,
            "activations": tokens * (one.again or one.layers / model.depth),
            "gradients on their way": tokens * one.backward,
        },
        "the end of the backward pass": {
            **always,
            "gradients": max(state.early, state.gradients),
            "gathered weights": state.end,
        },
        "the optimizer's step": {
            **always,
            "gradients": state.gradients,
            "optimizer's step": state.stepping,
        },
    }


def _always(settings: TrainConfig, model: Architecture, ranks: Ranks, state: Held, on_gpu: bool) -> dict[str, float]:
    out = {"buffers": state.buffers}
    if settings.forgetting is not None and settings.forgetting.device == "auto" and not state.host:
        out["anchor"] = _anchor(model, settings, state)
    if on_gpu:
        return {**out, "CUDA": CONTEXT + NCCL * (ranks.world > 1)}
    return {**out, "libraries": SCRATCH}


def _anchor(model: Architecture, settings: TrainConfig, state: Held) -> float:
    """The weights that the run started from, and how much each one matters."""
    assert settings.forgetting is not None
    return 4.0 * (2 if settings.forgetting.method == "ewc" else 1) * model.parameters / state.shards


def _host(
    model: Architecture, settings: TrainConfig, layout: BatchLayout, ranks: Ranks, state: Held, saved: float
) -> dict[str, float]:
    """Of a node."""
    local = ranks.local
    parts = {
        "processes": PROCESS * local,
        "offloaded state": state.host * local,
        "staged checkpoint": saved / ranks.world * local,
        "offloaded activations": _offloaded(model, settings, layout, state) * local,
        "largest tensor": 4.0 * model.largest * local,
    }
    if settings.forgetting is not None and (settings.forgetting.device == "cpu" or state.host):
        parts["anchor"] = _anchor(model, settings, state) * local
    if settings.lora is not None and not settings.lora.quantize:
        parts["model while it loads"] = Parameters.of(model, settings).frozen_bytes * local
    return {name: size for name, size in parts.items() if size}


def _offloaded(model: Architecture, settings: TrainConfig, layout: BatchLayout, state: Held) -> float:
    """Of one rank: each layer's input."""
    if not settings.train.activation_offload:
        return 0.0
    return float(state.between * model.hidden * model.depth * layout.micro_batch_size * settings.data.seq_len)
