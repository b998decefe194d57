"""How long a run takes, and what it costs, from FLOPs and from what has been reached on such GPUs. Torch-free."""

from __future__ import annotations

import math
from dataclasses import dataclass

from trainer.checkpoint.interval import Interval
from trainer.layout import BatchLayout
from trainer.plan.architecture import Architecture
from trainer.plan.devices import HOST_BANDWIDTH, LINK_BANDWIDTH, Device, Reached, reached
from trainer.plan.state import Parameters, Ranks, Sizes, sent
from trainer.schema import EveryK, TrainConfig
from trainer.stop.lead import COPY_RATE, FIRST_SAVE_RATE

RECOMPUTED = 0.27
"""Share of a step's time that full gradient checkpointing adds: a forward pass is a third of the FLOPs, and -21.4 % of
the tokens were measured for a Llama 3B (torchtune's README, A100)."""
SELECTED = 0.07
"""The same of selective: assumed, between none and a quarter of full."""
MARGIN = {True: 0.2, False: 0.5}
"""Whether an MFU is the user's own, and how much longer a run may take: a run of the same kind differs by saves and
held-out losses, a published MFU by a slow network."""
STARTED = 120.0
"""Seconds from an attempt's start to its first step: assumed, for a large model's load."""


@dataclass(frozen=True)
class Time:
    """Of a whole run."""

    tokens: float
    steps: int
    step: float
    """Seconds."""
    mfu: float
    """Of what the model needs; what is computed again does not count."""
    source: str
    """Of the MFU."""
    offload: float
    """How many times as long a step takes as without."""
    gpus: int
    nodes: int
    own: bool = False
    """The MFU is the user's own."""

    @property
    def margin(self) -> float:
        """Share of the time to ask for on top."""
        return MARGIN[self.own]

    @property
    def seconds(self) -> float:
        return self.steps * self.step

    @property
    def hours(self) -> float:
        return self.seconds / 3600

    @property
    def gpu_hours(self) -> float:
        return self.hours * self.gpus

    @property
    def node_hours(self) -> float:
        return self.hours * self.nodes

    def attempts(self, walltime: float) -> int:
        """Jobs of so many seconds that the run takes: each has to start, and stops in time to save."""
        return max(1, math.ceil(self.seconds / max(1.0, walltime - STARTED - 60)))


def again(settings: TrainConfig) -> float:
    """How many times as long a step takes because of what is computed again."""
    mode = settings.train.gradient_checkpointing
    if isinstance(mode, EveryK):
        return 1 + RECOMPUTED / mode.every_k
    return 1 + {False: 0.0, True: RECOMPUTED, "selective": SELECTED}[mode]


def time(
    model: Architecture, settings: TrainConfig, layout: BatchLayout, nodes: int, device: Device, steps: int
) -> Time:
    """`steps`: of the whole run."""
    gpus, tokens = layout.data_parallel_size, layout.global_batch_size * settings.data.seq_len
    line, rate = pace(device, model.active, gpus)
    plain = line.mfu * (1 + RECOMPUTED if line.recomputed else 1)
    computing = seconds_at(1.0, model, settings, layout, device) / plain
    sending = sent(model, settings, Ranks.of(layout, gpus // nodes)) / rate if rate else 0.0
    waiting = offloading(model, settings, layout, gpus // nodes)
    step = computing + sending + waiting
    mfu = plain / again(settings) * computing / step
    source = f"{line}{f'; {rate / 1e9:.2g} GB/s between ranks, by a run of several' if rate else ''}"
    offload = step / (computing + sending)
    return Time(float(tokens) * steps, steps, step, mfu, source, offload, gpus, nodes, line.own)


def seconds_at(mfu: float, model: Architecture, settings: TrainConfig, layout: BatchLayout, device: Device) -> float:
    """Of a step without what an offload waits for. `mfu`: as it would be with nothing computed again."""
    tokens = layout.global_batch_size * settings.data.seq_len
    flops = model.flops(settings.data.seq_len) * settings.products
    return tokens * flops * again(settings) / (layout.data_parallel_size * device.flops * mfu)


def mfu_of(
    step: float, model: Architecture, settings: TrainConfig, layout: BatchLayout, local: int, device: Device
) -> float | None:
    """What a measured step of so many seconds reached, with nothing computed again; None: by the plan its offload alone
    takes longer."""
    computing = step - offloading(model, settings, layout, local)
    return seconds_at(1.0, model, settings, layout, device) / computing if computing > 0 else None


def offloading(model: Architecture, settings: TrainConfig, layout: BatchLayout, local: int) -> float:
    """Seconds of a step in which GPUs wait for their host: the optimizer reads and writes 28 bytes a parameter there,
    and weights and gradients travel. Nothing of it is hidden behind the passes."""
    optimizer, weights = settings.engine.offloads
    trained, sizes = Parameters.of(model, settings).trained, Sizes.of(settings)
    seconds = 0.0
    if settings.train.activation_offload:  # each layer's input, there and back
        inputs = 2 * sizes.compute * model.hidden * model.depth * settings.data.seq_len
        seconds += inputs * layout.global_batch_size / layout.data_parallel_size / LINK_BANDWIDTH
    share = trained / layout.data_parallel_size
    if optimizer:
        seconds += 28 * share * local / HOST_BANDWIDTH + (4 + sizes.compute) * share / LINK_BANDWIDTH
    if weights:  # read for each forward and each backward pass
        bytes_each = 2 * layout.gradient_accumulation_steps * sizes.weights * model.parameters
        seconds += bytes_each / layout.data_parallel_size / LINK_BANDWIDTH
    return seconds


def pace(device: Device, parameters: float, ranks: int) -> tuple[Reached, float]:
    """What a rank's computing reaches, and the bytes a second of what is sent; 0: the first holds all of it.

    Of several ranks the two are told apart where the user has measured a rank alone as well: what a step of several
    took longer is what they sent each other. What computing hides of that counts as not sent."""
    shared = reached(device, parameters, ranks)
    alone = reached(device, shared.billions * 1e9, 1)
    if shared.sent is None or shared.step is None or alone.ranks != 1:
        return shared, 0.0
    waited = shared.step * (1 - shared.mfu / alone.mfu)
    return (reached(device, parameters, 1), shared.sent / waited) if waited > 0 else (shared, 0.0)


@dataclass(frozen=True)
class Saving:
    """Checkpoints of a run."""

    bytes: float
    stall: float
    """Seconds for which training waits."""
    written: float
    """Seconds until one is durable."""
    every: int
    """Steps."""
    disk: float
    """Bytes of all that stand at once."""


def saving(settings: TrainConfig, size: float, time: Time) -> Saving:
    """`size`: bytes of a checkpoint. The interval is that of `checkpoint.every`, by the trainer's own estimates."""
    check = settings.checkpoint
    stall = size / time.gpus / COPY_RATE
    written = size / (FIRST_SAVE_RATE * time.nodes)
    if isinstance(check.every, int):
        every = check.every
    elif check.seconds is not None:
        every = max(1, round(check.seconds / time.step))
    else:
        every = Interval(stall, False, written, time.step, 0, 0.0, time.nodes).steps
    return Saving(size, stall, written, every, size * check.most(time.steps))
