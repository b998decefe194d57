"""What a recipe may say, section by section. Torch-free, so that a login node checks it in milliseconds.

A field without a mark is *exact*: a resume refuses another value, since the run would no longer be the same run.
Fields marked LAYOUT may change between attempts.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, Literal

from msgspec import Meta, field
from msgspec.structs import replace

from settings import ConfigError, Struct

LAYOUT = Meta(extra={"change": "layout"})

Count = Annotated[int, Meta(ge=1)]
Share = Annotated[float, Meta(ge=0, le=1)]
Seconds = Annotated[float, Meta(gt=0)]
Positive = Annotated[float, Meta(gt=0)]


class _Scaled(Struct, frozen=True, kw_only=True, tag_field="rope_type"):
    """Rotary positions scaled to a longer context: the fields are those of transformers' rope_parameters."""

    factor: Annotated[float, Meta(ge=1)]
    """The context is so many times as long afterwards."""
    original_max_position_embeddings: Count | None = None
    """Positions that the model was trained with; default: its max_position_embeddings."""
    rope_theta: Positive | None = None
    """Default: the model's own."""


class Linear(_Scaled, frozen=True, kw_only=True, tag="linear"):
    """Positions divided by the factor."""


class Dynamic(_Scaled, frozen=True, kw_only=True, tag="dynamic"):
    """A larger base, by how far the longest document of a micro batch reaches beyond the trained context."""


class Yarn(_Scaled, frozen=True, kw_only=True, tag="yarn"):
    """Low frequencies divided, high ones kept, attention sharpened."""

    attention_factor: Positive | None = None
    """Default: 0.1 ln(factor) + 1."""
    beta_fast: Positive | None = None
    """Turns within the trained context from which on a frequency is kept; default: 32."""
    beta_slow: Positive | None = None
    """Turns up to which it is divided; default: 1."""
    mscale: Positive | None = None
    mscale_all_dim: Positive | None = None
    truncate: bool | None = None
    """Bounds between kept and divided at whole dimensions; default: true."""


class Llama3(_Scaled, frozen=True, kw_only=True, tag="llama3"):
    """As in Llama 3.1: low frequencies divided, high ones kept, smooth between."""

    low_freq_factor: Positive = 1.0
    high_freq_factor: Positive = 4.0


class Longrope(_Scaled, frozen=True, kw_only=True, tag="longrope"):
    """A divisor for each frequency: one list within the trained context, one beyond."""

    short_factor: list[Positive]
    """One for each pair of a head's dimensions."""
    long_factor: list[Positive]
    attention_factor: Positive | None = None
    """Default: sqrt(1 + ln(factor) / ln(original_max_position_embeddings))."""


Rope = Linear | Dynamic | Yarn | Llama3 | Longrope


class Model(Struct, frozen=True):
    path: Annotated[str | None, LAYOUT] = None
    """Folder of a Hugging Face model whose weights training starts from."""
    config: dict[str, Any] | None = None
    """Or: a Hugging Face config with its `model_type`; the weights are initialized from the seed."""
    tokenizer: Annotated[str | None, LAYOUT] = None
    """Folder of the tokenizer; default: the model's folder."""
    attention: Literal["auto", "documents", "sdpa", "eager", "flash_attention_2"] = "auto"
    """documents: each packed document by itself, what a mask would hide is not computed; the others: implementations
    of transformers; auto: documents where the model's code can."""
    new_tokens: list[str] | None = None
    """Texts that become one token each; or a file of them, one a line (`python -m trainer.vocabulary` finds some). The
    row of each starts from the mean of the rows of the pieces that its text had."""
    rope: Rope | None = None
    """A longer context, by scaled rotary positions."""

    @property
    def tokenizer_folder(self) -> str:
        folder = self.tokenizer or self.path
        if folder is None:
            raise ConfigError("model.tokenizer is missing: a model built from model.config needs a tokenizer folder")
        return folder


Format = Literal["text", "chat", "completion"]
Split = Literal["train", "evaluation"]
ROLES = ("system", "developer", "user", "assistant", "tool")
COLUMNS = {
    "text": {"text": "text"},
    "completion": {"prompt": "prompt", "completion": "completion"},
    "chat": {name: name for name in ("messages", "tools", "role", "content", *ROLES)},
}
"""By data.format: what data.column may map, and what it is called in the files where it does not."""


class Source(Struct, frozen=True):
    """Documents of one kind."""

    files: list[str]
    """In this order; where they lie may change, a resume compares what they hold."""
    format: Format | None = None
    """Default: data.format."""
    column: str | dict[str, str] | None = None
    """Default: data.column."""
    sample_by: Literal["document", "line"] | None = None
    """Default: data.sample_by."""

    @property
    def kind(self) -> Format:
        assert self.format is not None  # data.sources has written the default in
        return self.format

    @property
    def columns(self) -> dict[str, str]:
        """What the files call what: our name -> theirs. Raises ConfigError."""
        known, given = COLUMNS[self.kind], self.column or {}
        if isinstance(given, str) and self.kind == "completion":
            raise ConfigError(f"data.column={given}: completion needs two: data.column={{prompt: X, completion: Y}}")
        if isinstance(given, str):
            given = {next(iter(known)): given}
        for name in given:
            if name not in known:
                raise ConfigError(f"data.column: {self.kind} has no {name}: what can be mapped: {', '.join(known)}")
        return {**known, **given}


class Data(Struct, frozen=True):
    train: Annotated[list[str] | dict[str, Source], LAYOUT]
    """Files to train on, folders or globs of them; or several sources of such files, each with a name."""
    seq_len: Count
    """Tokens in a packed sequence."""
    evaluation: Annotated[list[str] | dict[str, Source], LAYOUT] = []
    """The same held out for the evaluation loss; or several such sets, each with a name."""
    format: Format = "text"
    """text: one document a row. chat: a list of messages a row; the loss counts the assistant's tokens. completion: a
    prompt and its completion a row; the loss counts the completion."""
    column: str | dict[str, str] | None = None
    """The row's field; default: `text`, or `messages` for chat. Or a mapping, where the files call things otherwise:
    {prompt: question, completion: answer}; {messages: conversations, role: from, content: value, user: human}."""
    sample_by: Literal["document", "line"] = "document"
    """A plain text file (.txt) is one document; or each of its lines is."""
    too_long: Literal["split", "truncate", "reject"] = "split"
    """What becomes of a document of more than max_tokens. split: it goes on in the next sequence; truncate: it ends
    there; reject: it is a row that cannot be used."""
    max_tokens: Count | None = None
    """Of one document; default: data.seq_len."""
    max_rejects: Annotated[Share, LAYOUT] = 0.01
    """Share of rows that may be unusable (counted and kept in rejects.jsonl) before the run refuses to start."""
    cache: Annotated[str | None, LAYOUT] = None
    """Folder of prepared data; default: `.prepared` beside the run folders."""

    @property
    def document_limit(self) -> int:
        """Tokens."""
        return self.max_tokens or self.seq_len

    @property
    def sources(self) -> dict[str, Source]:
        """All that is to be prepared, by key: train, or train.NAME of each source; evaluation, or evaluation.NAME."""
        found: dict[str, Source] = {}
        for key, given in (("train", self.train), ("evaluation", self.evaluation)):
            found |= {f"{key}.{name}": one for name, one in given.items()} if isinstance(given, dict) else {}
            found |= {key: Source(given)} if isinstance(given, list) and given else {}
        return {
            key: Source(s.files, s.format or self.format, s.column or self.column, s.sample_by or self.sample_by)
            for key, s in found.items()
        }

    def with_files(self, find: Callable[[list[str]], list[str]]) -> Data:
        """The same, with what `find` makes of the names of each source's files."""

        def found(given: list[str] | dict[str, Source]) -> list[str] | dict[str, Source]:
            if isinstance(given, list):
                return find(given)
            return {name: replace(source, files=find(source.files)) for name, source in given.items()}

        return replace(self, train=found(self.train), evaluation=found(self.evaluation))

    def keys(self, split: Split) -> dict[str, str]:
        """The keys in `sources` of one of both, by the name that the recipe gives; files in a list have none: ""."""
        keys = [key for key in self.sources if key.partition(".")[0] == split]
        return {key.partition(".")[2]: key for key in keys}


class EveryK(Struct, frozen=True):
    every_k: Count
    """Of so many layers one is computed again, the others keep their activations."""


class Train(Struct, frozen=True):
    global_batch_size: Count
    """Sequences in one optimizer step, over all ranks."""
    steps: Count | None = None
    """Optimizer steps of the whole run."""
    epochs: Annotated[float, Meta(gt=0)] | None = None
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
    compile: Annotated[bool, LAYOUT] = False
    """Layers by torch.compile: the first step waits for it (tens of seconds), the others may be faster."""
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
    lr: Annotated[float, Meta(gt=0)] | None = None
    """Peak learning rate of AdamW; default, for existing weights alone: 1e-5 for text, else 2e-5; 1e-4 for LoRA."""
    name: Literal["adamw", "adamw_8bit"] = "adamw"
    """adamw_8bit: moments in eight bits with a scale for each 256 (2 bytes a parameter in place of 8)."""
    schedule: Schedule = "cosine"
    """How the rate falls after the warmup; wsd: it stays at the peak, and falls as a cosine at the end."""
    betas: tuple[Share, Share] = (0.9, 0.95)
    eps: Annotated[float, Meta(gt=0)] = 1e-8
    weight_decay: Annotated[float, Meta(ge=0)] = 0.0
    clip: Annotated[float, Meta(gt=0)] = 1.0
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
"""Peak learning rate by data.format, for existing weights: full instruction tuning, continual pre-training."""
LORA_RATE = 1e-4


def default_rate(data_format: str, lora: bool) -> float | None:
    """Peak learning rate for existing weights; None: there is no such format."""
    return LORA_RATE if lora else DEFAULT_RATES.get(data_format)


class Rate(Struct, frozen=True):
    """What a stage has of its own in `optim`; default: what stands there."""

    lr: Annotated[float, Meta(gt=0)] | None = None
    """Default: optim.lr; without it, for existing weights alone: 2e-5 where a source is chat, else 1e-5."""
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
    epochs: Annotated[float, Meta(gt=0)] | None = None
    """Passes over all sources; with a mixture over the one of the largest weight."""
    tokens: Annotated[float, Meta(gt=0)] | None = None
    """Tokens of its sequences, for example 2e9; of these and of passes, a last part of a batch is left out."""
    optim: Rate = Rate()


class Ddp(Struct, frozen=True, tag_field="kind", tag="ddp"):
    """Every rank holds everything; gradients are summed."""


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


class Deepspeed(Struct, frozen=True, tag_field="kind", tag="deepspeed"):
    """DeepSpeed's ZeRO: what is sharded, and where it lies, is said by its own JSON."""

    config: str | dict[str, Any]
    """The JSON: a file, or its content; RUN_DIR/config.yaml holds the content."""

    @property
    def json(self) -> dict[str, Any]:
        assert isinstance(self.config, dict)  # a file was read before the tree became a config
        return self.config


class Lora(Struct, frozen=True):
    """Small matrices beside the linear layers are trained, the weights stay (peft)."""

    r: Count = 64
    """Their rank."""
    alpha: Annotated[float, Meta(gt=0)] | None = None
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
    limits: dict[str, Annotated[float, Meta(gt=0)]] = {}
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
    engine: Annotated[Ddp | Fsdp | Deepspeed, LAYOUT] = Ddp()
    evaluation: Annotated[Evaluation, LAYOUT] = Evaluation()
    checkpoint: Annotated[Checkpoint, LAYOUT] = Checkpoint()
    watchdog: Annotated[Watchdog, LAYOUT] = Watchdog()
    tensorboard: Annotated[bool, LAYOUT] = True
    export: Annotated[bool, LAYOUT] = True
    """Write a Hugging Face folder `export/` when the last step is saved."""
    fork: Annotated[str | None, LAYOUT] = None
    """Checkpoint folder of another run: this one starts from its weights, moments and step (launch.py --fork)."""

    def purpose(self, stage: Stage | None = None) -> Format:
        """chat where a source is, of those of a stage or of the whole run."""
        named = self.data.keys("train").items()
        used = [key for name, key in named if stage is None or stage.mixture is None or name in stage.mixture]
        kinds = {self.data.sources[key].kind for key in used} or {self.data.format}
        return "chat" if "chat" in kinds else "text"

    @property
    def result(self) -> Format:
        """What the model is for in the end."""
        return self.purpose(self.stages[-1] if self.stages else None)

    @property
    def lean_optimizer(self) -> bool:
        """AdamW steps on what is kept in less than fp32."""
        return self.train.bf16_weights or self.optim.name == "adamw_8bit"
