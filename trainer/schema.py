"""What a recipe may say, section by section. Torch-free, so that a login node checks it in milliseconds.

A field without a mark is *exact*: a resume refuses another value, since the run would no longer be the same run.
Fields marked LAYOUT may change between attempts.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from msgspec import Meta, field
from msgspec.structs import replace

from settings import LAYOUT, Count, Positive, Seconds, Share, Struct
from trainer.data.values import Form
from trainer.engines.ddp.settings import Ddp
from trainer.engines.deepspeed.settings import Deepspeed
from trainer.engines.fsdp.settings import Fsdp
from trainer.shape import Model
from trainer.sources import KINDS, Data, Find, Forgetting, Source


class EveryK(Struct, frozen=True):
    every_k: Count
    """Of so many layers one is computed again, the others keep their activations."""


class Train(Struct, frozen=True):
    global_batch_size: Count
    """Sequences in one optimizer step, over all ranks."""
    steps: Count | None = None
    """Optimizer steps of the whole run."""
    epochs: Positive | None = None
    """Or: passes over the data; a last part of a batch is left out, and said. Neither where there are stages."""
    micro_batch_size: Annotated[Count | None, LAYOUT] = None
    """Sequences in one forward pass of one rank; default: the largest divisor of its share up to 8."""
    seed: Annotated[int, Meta(ge=0)] = 0
    precision: Literal["fp32", "master32", "adam32", "bf16"] = "master32"
    """Forward and backward are in bf16, but for fp32, and kept are: master32: all in fp32 (16 bytes a parameter with
    its gradient); adam32: weights and gradients in bf16, moments in fp32 (12 bytes); bf16: all in bf16 (8 bytes).
    What is kept in bf16 is rounded at random, so that small steps are not lost."""
    gradient_checkpointing: Annotated[bool | Literal["selective"] | EveryK, LAYOUT] = False
    """true: a layer keeps its input alone and is computed again in the backward pass; every_k: K: one of K layers;
    selective: matrix products and attention are kept, the rest is computed again."""
    activation_offload: Annotated[bool, LAYOUT] = False
    """What gradient checkpointing keeps waits in host memory."""
    compile: Annotated[bool | Literal["auto"], LAYOUT] = False
    """Layers by torch.compile: the first step waits for it (tens of seconds), the others may be faster. auto: where
    one layer, measured before a run's first step, gains 2 % at least."""
    kernels: Annotated[Literal["liger"] | None, LAYOUT] = None
    """liger: norms, rotations and gated layers are one kernel each, by liger-kernel, on a GPU; the loss stays ours."""
    deterministic: Annotated[bool, LAYOUT] = False
    """Deterministic kernels on CUDA: bit-identical resumes there, at the cost of some speed."""

    @property
    def bf16_passes(self) -> bool:
        """Forward and backward are computed in bf16."""
        return self.precision != "fp32"

    @property
    def bf16_weights(self) -> bool:
        """The weights themselves are bf16, and their gradients."""
        return self.precision in ("adam32", "bf16")


Schedule = Literal["cosine", "linear", "constant", "wsd"]


class Optim(Struct, frozen=True):
    lr: Positive | None = None
    """Peak learning rate of AdamW; default, for existing weights alone: 1e-5 for text, else 2e-5; 1e-4 for LoRA."""
    name: Literal["adamw", "adamw_8bit"] = "adamw"
    """adamw_8bit: moments in eight bits with a scale for each 256 (2 bytes a parameter in place of 8)."""
    schedule: Schedule = "cosine"
    """How the rate falls after the warmup; wsd: it stays at the peak, and falls as a cosine at the end."""
    betas: tuple[Share, Share] = (0.9, 0.95)
    eps: Positive = 1e-8
    weight_decay: Annotated[float, Meta(ge=0)] = 0.0
    clip: Positive = 1.0
    """Largest norm of the global gradient."""
    warmup: Share = 0.05
    """Share of the steps over which the rate grows from 0 to the peak."""
    min_lr: Share = 0.1
    """Share of the peak that the schedule falls to."""
    decay: Share = 0.1
    """Share of the steps over which wsd falls."""

    @property
    def peak(self) -> float:
        assert self.lr is not None  # resolve() has written the default in
        return self.lr


DEFAULT_RATES = {"chat": 2e-5, "completion": 2e-5, "text": 1e-5}
"""Peak learning rate by what rows become, for existing weights: full instruction tuning, continual pre-training."""
LORA_RATE = 1e-4


def default_rate(data_format: str, lora: bool) -> float | None:
    """Peak learning rate for existing weights; None: there is no such format."""
    kind = KINDS.get(data_format)
    return LORA_RATE if lora else kind and DEFAULT_RATES[kind.form]


class Rate(Struct, frozen=True):
    """What a stage has of its own in `optim`; default: what stands there."""

    lr: Positive | None = None
    """Default: optim.lr; without it, for existing weights alone: 2e-5 where a source has chats or completions,
    else 1e-5; 1e-4 for LoRA."""
    schedule: Schedule | None = None
    warmup: Share | None = None
    """Share of the stage's steps; so is `decay`."""
    min_lr: Share | None = None
    decay: Share | None = None


class Ramp(Struct, frozen=True):
    """A weight that changes in a straight line from the stage's begin to its end."""

    begin: float = field(name="from")
    end: float = field(name="to")


class Stage(Struct, frozen=True):
    """A stretch of the run's steps with its own data and rate. One of steps, epochs and tokens says how long it is."""

    name: str
    mixture: dict[str, float | Ramp] | None = None
    """Weights of sources of data.train, by tokens, relative to their sum; a number, or {from: 0.1, to: 0.3}. Default:
    all sources as if they were one."""
    steps: Count | None = None
    epochs: Positive | None = None
    """Passes over all sources; with a mixture over the one of the largest weight."""
    tokens: Positive | None = None
    """Tokens of its sequences, for example 2e9; of these and of passes, a last part of a batch is left out."""
    optim: Rate = Rate()

    @property
    def weights(self) -> dict[str, tuple[float, float]]:
        """Of its mixture, at its begin and at its end; empty: all sources as one."""
        given = (self.mixture or {}).items()
        return {name: (one.begin, one.end) if isinstance(one, Ramp) else (one, one) for name, one in given}


EngineSettings = Ddp | Fsdp | Deepspeed
"""Each a folder of trainer/engines/."""


class Lora(Struct, frozen=True):
    """Small matrices beside the linear layers are trained, the weights stay (peft)."""

    r: Count = 64
    """Their rank."""
    alpha: Positive | None = None
    """Their weight is alpha / r; default: 2 r."""
    dropout: Share = 0.0
    targets: str | list[str] = "all-linear"
    """Names of the layers that get them; all-linear: every linear layer but the head."""
    tokens: list[int] | Literal["new"] = []
    """Tokens whose own rows of the embedding are trained too; new: those of model.new_tokens."""
    quantize: Literal["nf4"] | None = None
    """Called by what is done to the other weights while they load: linear layers are kept in 4 bits (QLoRA), NF4 with
    scales in 8 bits; what else stays is kept in bf16. By bitsandbytes, under engine.kind=ddp."""


class Evaluation(Struct, frozen=True):
    every: Annotated[int, Meta(ge=0)] = 0
    """Steps between two evaluations; 0: none."""
    batches: Count = 8
    """Global batches of held-out data in one evaluation, of each set."""
    best: str | None = None
    """The set whose loss says which checkpoints checkpoint.keep_best keeps; default: the first."""
    limits: dict[str, Positive] = {}
    """By set: the share by which its loss may rise above the first one before that is said (0.05: by 5 %). Then the
    sets are evaluated before the first step, too."""


_TIME = re.compile(r"([1-9]\d*)([smhd])")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}  # seconds


class Checkpoint(Struct, frozen=True):
    every: Count | str = "auto"
    """Steps between two saves; or a time: 30m, 2h; or auto: as often as costs least, by what saves and interruptions
    have cost so far. A stop saves in any case."""
    keep: Annotated[int, Meta(ge=2)] = 2
    """The last so many stay, the newest verified one always."""
    keep_every: Annotated[int, Meta(ge=0)] = 0
    """Besides, of every so many steps the first checkpoint stays for good; 0: none."""
    keep_best: Annotated[int, Meta(ge=0)] = 0
    """Besides, so many with the lowest held-out loss stay; then every evaluation is saved. 0: none."""

    def most(self, steps: int) -> int:
        """Checkpoints that stand at once in a run of so many steps, with the one that is being written."""
        return self.keep + self.keep_best + (steps // self.keep_every if self.keep_every else 0) + 1

    @property
    def seconds(self) -> float | None:
        """Between two saves, where `every` is a time."""
        time = _TIME.fullmatch(self.every) if isinstance(self.every, str) else None
        return int(time[1]) * _UNITS[time[2]] if time else None


class Watchdog(Struct, frozen=True):
    factor: Annotated[float, Meta(ge=0)] = 20.0
    """A step that takes so many times the run's p95 is a hang: stacks are dumped, exit 86. 0: nothing is watched."""
    step_seconds: Seconds = 300.0
    """A step is no hang before that, however fast the others were."""
    evaluation_seconds: Seconds = 1800.0
    """Longest for one batch of an evaluation."""
    save_seconds: Seconds = 3600.0
    """Longest for a checkpoint."""
    start_seconds: Seconds = 3600.0
    """Longest for anything else: the model's build, the load, the first step with its compilation, a wait for data,
    the export."""

    @property
    def longest(self) -> float:
        return max(self.step_seconds, self.evaluation_seconds, self.save_seconds, self.start_seconds)


class TrainConfig(Struct, frozen=True):
    """The resolved recipe: RUN_DIR/config.yaml holds it complete, every default written out."""

    name: str
    model: Model
    data: Data
    train: Train
    optim: Optim = Optim()
    stages: Annotated[list[Stage], Meta(min_length=1)] | None = None
    """One after the other, in place of train.steps and train.epochs."""
    lora: Lora | None = None
    """Instead of all weights."""
    forgetting: Forgetting | None = None
    """Hold the weights near those that the run starts from."""
    engine: Annotated[EngineSettings, LAYOUT] = Ddp()
    evaluation: Annotated[Evaluation, LAYOUT] = Evaluation()
    checkpoint: Annotated[Checkpoint, LAYOUT] = Checkpoint()
    watchdog: Annotated[Watchdog, LAYOUT] = Watchdog()
    tensorboard: Annotated[bool, LAYOUT] = True
    wandb: Annotated[Literal["offline"] | None, LAYOUT] = None
    """offline: the report writes RUN_DIR/wandb beside itself, for `wandb sync`; the ranks' Python has the package."""
    export: Annotated[bool, LAYOUT] = True
    """Write a Hugging Face folder `export/` when the last step is saved."""
    report: Annotated[bool, LAYOUT] = True
    """Write report.html at the end of the run; `launch.py report` does at any time."""
    fork: Annotated[str | None, LAYOUT] = None
    """Checkpoint folder of another run: this one starts from its weights, moments and step (launch.py --fork)."""

    def purpose(self, stage: Stage | None = None) -> Form:
        """Of a stage, or of the whole run: chat where any source has chats, else completion where any has those, else
        text."""
        named = self.data.keys("train").items()
        used = [key for name, key in named if stage is None or stage.mixture is None or name in stage.mixture]
        forms = {self.data.sources[key].form for key in used} or {KINDS[self.data.format].form}
        return "chat" if "chat" in forms else "completion" if "completion" in forms else "text"

    @property
    def products(self) -> float:
        """The share of a step's matrix products that is done: a third are gradients, and frozen weights have none."""
        return 2 / 3 if self.lora else 1.0

    @property
    def result(self) -> Form:
        """What the model is for in the end."""
        return self.purpose(self.stages[-1] if self.stages else None)

    @property
    def to_keep(self) -> dict[str, Source]:
        """Data of what is not to be forgotten, by key."""
        return self.forgetting.sources(self.data) if self.forgetting else {}

    def with_files(self, find: Find) -> TrainConfig:
        """The same, with what `find` makes of the names of each source's files."""
        forgetting = self.forgetting and self.forgetting.with_files(find)
        return replace(self, data=self.data.with_files(find), forgetting=forgetting)

    @property
    def lean_optimizer(self) -> bool:
        """AdamW steps on what is kept in less than fp32."""
        return self.train.bf16_weights or self.optim.name == "adamw_8bit"
