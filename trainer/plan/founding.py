"""`launch.py plan --table`: the founding document's numbers, each with its arithmetic, as docs/founding-table.md.

Torch-free.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from trainer.engines.deepspeed.settings import Deepspeed
from trainer.engines.fsdp.settings import Fsdp
from trainer.plan.architecture import Architecture, read
from trainer.plan.devices import device
from trainer.plan.layouts import Planned, planned
from trainer.schema import Optim, Train, TrainConfig
from trainer.shape import Model
from trainer.sources import Data

TOKENS = 2048
"""Of an example, and of a sequence: the founding document does not say."""
EPOCHS, BATCH = 3, 64
GIB = 2**30
RECIPES: dict[str, int] = {"bf16": 8, "adam32": 12, "master32": 16}
"""Precision recipes, and their bytes a parameter."""

_LLAMA = {"model_type": "llama", "max_position_embeddings": 8192}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "7B": ("Llama 2 7B", {"hidden_size": 4096, "intermediate_size": 11_008, "num_hidden_layers": 32}),
    "13B": (
        "Llama 2 13B",
        {"hidden_size": 5120, "intermediate_size": 13_824, "num_hidden_layers": 40, "num_attention_heads": 40},
    ),
    "70B": (
        "Llama 3.1 70B",
        {
            "hidden_size": 8192,
            "intermediate_size": 28_672,
            "num_hidden_layers": 80,
            "num_key_value_heads": 8,
            "vocab_size": 128_256,
            "num_attention_heads": 64,
        },
    ),
}


@dataclass(frozen=True)
class Row:
    model: str
    gpu: str
    whole: int
    """GPUs without offload."""
    offloaded: int
    hours: tuple[float, float]


ROWS = [
    Row("7B", "a100-40", 4, 2, (4, 8)),
    Row("13B", "a100-40", 8, 4, (8, 16)),
    Row("70B", "a100-80", 8, 4, (24, 48)),
    Row("70B", "h100-80", 16, 8, (12, 24)),
]
ZERO3: dict[str, Any] = {
    "zero_optimization": {
        "stage": 3,
        "offload_optimizer": {"device": "cpu"},
        "offload_param": {"device": "cpu"},
        "overlap_comm": True,
        "contiguous_gradients": True,
        "reduce_bucket_size": "auto",
        "stage3_prefetch_bucket_size": "auto",
        "stage3_param_persistence_threshold": "auto",
    }
}
"""The founding document's own."""
ZERO2: dict[str, Any] = {"zero_optimization": {"stage": 2, "reduce_bucket_size": "auto"}}


def shape(name: str) -> Architecture:
    return read({**_LLAMA, **MODELS[name][1]})


def cell(name: str, gpu: str, gpus: int, engine: Any, precision: str = "master32", micro: int = 1) -> Planned:
    """All recomputed; on nodes of at most eight GPUs."""
    settings = TrainConfig(
        name="founding",
        model=Model(config={}),
        data=Data(train=[], seq_len=TOKENS),
        train=Train(
            global_batch_size=BATCH,
            steps=steps(5000),
            micro_batch_size=micro,
            precision=precision,  # type: ignore[arg-type]
            gradient_checkpointing=True,
        ),
        optim=Optim(lr=1e-5),
        engine=engine,
    )
    nodes = -(-gpus // 8)
    return planned(shape(name), settings, nodes, gpus // nodes, device(gpu), steps(5000))


def steps(examples: int) -> int:
    return examples * EPOCHS // BATCH


def page() -> str:
    """Markdown."""
    return "\n".join([*_head(), *_without(), *_with_offload(), *_hours(), *_formula(), *_sentence(), *_case()])


def _head() -> Iterator[str]:
    yield "# The founding table, by the arithmetic"
    yield ""
    yield "At the end of this page you know which GPU counts and hours that are told of 7B, 13B and 70B stand, by"
    yield "arithmetic. The founding document is the text that this project was started from; its table and its case are"
    yield "checked here."
    yield ""
    yield "Made by `python launch.py plan --table`. Nothing here was measured on these GPUs: memory is computed from"
    yield "what the engines hold (`trainer/plan/`), time from published MFU. Sequences are packed to 2,048 tokens, of"
    yield "which the founding document says nothing; the micro batch is one sequence, every layer is recomputed."
    yield ""
    yield "| as published: model | GPUs, no offload | GPUs, ZeRO 3 + CPU | 3 epochs of 5,000 examples |"
    yield "|---|---|---|---|"
    for row in ROWS:
        low, high = row.hours
        yield f"| {row.model} | {row.whole} x {row.gpu} | {row.offloaded} x {row.gpu} | {low:g}-{high:g} h |"


def _without() -> Iterator[str]:
    yield from ("", "## No offload", "")
    yield "`engine.kind=fsdp engine.reduce_each=true`: weights, gradients and moments are shared out over all GPUs. The"
    yield "state alone is bytes a parameter x parameters / GPUs; planned are gathered layers, activations, the loss and"
    yield "CUDA besides."
    yield ""
    yield "| | the GPU has | recipe | state | planned | |"
    yield "|---|---|---|---|---|---|"
    for row in ROWS:
        fitting = []
        for precision, size in RECIPES.items():
            one = cell(row.model, row.gpu, row.whole, Fsdp(reduce_each=True), precision)
            count = shape(row.model).parameters
            state = f"{size} x {count / 1e9:.2f} B / {row.whole} = {size * count / row.whole / GIB:.1f} GiB"
            has, needs = one.device.bytes / GIB, one.memory.gpu / GIB
            fitting += [f"{precision} ({size}N)"] * one.fits
            said = "fits" if one.fits else f"{needs - has:.1f} GiB too much"
            cells = (f"{row.model}, {row.whole} x {row.gpu}", f"{has:.1f}", f"{precision}, {size}N", state)
            yield f"| {' | '.join(cells)} | {needs:.1f} GiB | {said} |"
        yield f"| **{row.model}, {row.whole} x {row.gpu}** | | | | | **{_verdict(fitting)}** |"


def _verdict(fitting: list[str]) -> str:
    if not fitting:
        return "refuted: no recipe fits"
    return "stands" if len(fitting) == len(RECIPES) else f"only with {' and '.join(fitting)}"


def _with_offload() -> Iterator[str]:
    yield from ("", "## ZeRO 3 with offload to the CPU", "")
    yield "The founding document's own JSON. The GPU holds gathered layers and activations; the node holds the rest:"
    yield "16 bytes a parameter for the optimizer (fp32 weights, gradient, two moments), 2 for bf16 weights, 2 for bf16"
    yield "gradients."
    yield ""
    yield "| | a GPU, planned | it has | a node's memory | a step | |"
    yield "|---|---|---|---|---|---|"
    for row in ROWS:
        one = cell(row.model, row.gpu, row.offloaded, Deepspeed(ZERO3))
        offloaded = one.memory.host["offloaded state"] / GIB
        said = "stands, on such a node" if one.fits else "refuted: the GPU has too little"
        yield (
            f"| {row.model}, {row.offloaded} x {row.gpu} | {one.memory.gpu / GIB:.1f} GiB | "
            f"{one.device.bytes / GIB:.1f} | {offloaded:,.0f} GiB for the state, "
            f"{one.memory.node / GIB:,.0f} with processes and a staged checkpoint | "
            f"{one.time.offload:.1f} times as long as without offload | **{said}** |"
        )


def _hours() -> Iterator[str]:
    yield from ("", "## Time", "")
    total = steps(5000) * BATCH * TOKENS / 1e6
    yield f"{steps(5000)} steps of {BATCH} sequences of {TOKENS:,} tokens: {total:.1f} M tokens."
    yield "Hours = tokens x FLOPs a token / (GPUs x peak x MFU)."
    yield ""
    yield "| | published | planned, no offload | planned, offload | |"
    yield "|---|---|---|---|---|"
    for row in ROWS:
        whole = cell(row.model, row.gpu, row.whole, Fsdp(reduce_each=True))
        away = cell(row.model, row.gpu, row.offloaded, Deepspeed(ZERO3))
        low, high = row.hours
        times = f"{low / whole.time.hours:.0f} to {high / whole.time.hours:.0f} times"
        flops = shape(row.model).flops(TOKENS) / 1e9
        sum_of = f"{flops:.1f} GF a token, {whole.device.flops / 1e12:.0f} TF, MFU {whole.time.mfu:.1%}"
        inside = low <= away.time.hours <= high
        verdict = "stands with offload alone" if inside else f"refuted: {times} as long as it takes"
        yield (
            f"| {row.model}, {row.whole} or {row.offloaded} x {row.gpu} | {low:g}-{high:g} h | "
            f"{whole.time.hours:.2f} h ({sum_of}) | {away.time.hours:.1f} h | **{verdict}** |"
        )
    yield ""
    yield "The MFU is published, of other trainers on fast networks:"
    yield ""
    for row in ROWS:
        yield f"- {row.model} on {row.gpu}: {cell(row.model, row.gpu, row.whole, Fsdp()).time.source}"
    yield ""
    yield "With examples of another length the hours grow in proportion: the published 7B row takes examples of"
    seven = cell("7B", "a100-40", 4, Fsdp(reduce_each=True)).time.hours
    yield f"{4 / seven * TOKENS / 1000:.0f} to {8 / seven * TOKENS / 1000:.0f} thousand tokens."


def _formula() -> Iterator[str]:
    yield from ("", "## The formula: at least 12N", "")
    yield "Parameters 2N, gradients 2N or 4N, AdamW's moments 8N. That is one recipe of several, without fp32 weights:"
    yield "steps that are smaller than a bf16 weight's last bit are lost then, unless they are rounded at random."
    yield ""
    yield "| recipe | weights | gradients | moments | in all | 7B (7.0e9) | 70B (70e9) |"
    yield "|---|---|---|---|---|---|---|"
    for name, weights, gradients, moments in (
        ("`bf16`: all in bf16, rounded at random", 2, 2, 4),
        ("`adam32`: the founding 12N, rounded at random", 2, 2, 8),
        ("the founding text with fp32 gradients", 2, 4, 8),
        ("`master32` (default): fp32 weights", 4, 4, 8),
        ("DeepSpeed, bf16 beside fp32 weights", "2 + 4", 4, 8),
    ):
        total = sum(int(part) for part in str(weights).split(" + ")) + gradients + moments
        sizes = f"{total * 7:,} GB | {total * 70:,} GB"
        yield f"| {name} | {weights} | {gradients} | {moments} | **{total}N** | {sizes} |"
    yield ""
    yield "84 GB and 840 GB are 12 x 7 and 12 x 70: right for that recipe, without activations, gathered layers, CUDA."


def _sentence() -> Iterator[str]:
    yield from ("", '## "7B on 4 x A100 40 GB instead of 8, by ZeRO 3 with offload"', "")
    whole = cell("7B", "a100-40", 4, Fsdp(reduce_each=True))
    away = cell("7B", "a100-40", 4, Deepspeed(ZERO3))
    one = cell("7B", "a100-40", 1, Deepspeed(ZERO3))
    yield (
        f"Four GPUs hold it without offload: {whole.memory.gpu / GIB:.1f} of {whole.device.bytes / GIB:.1f} GiB by "
        f"fsdp in `master32`, {whole.time.hours:.2f} h. With offload a GPU needs {away.memory.gpu / GIB:.1f} GiB and "
        f"the run {away.time.hours:.2f} h. So the sentence {'is refuted' if whole.fits else 'stands'}, and the table's "
        f"own first row, 4 x A100 40 GB without offload, contradicts it. Offload is for fewer: one GPU takes "
        f"{one.memory.gpu / GIB:.1f} GiB, its node {one.memory.host['offloaded state'] / GIB:.0f} GiB."
    )


def _case() -> Iterator[str]:
    yield from ("", "## The case: 6,800 examples, 3 epochs, batch 64, 14 h on 8 x A100 80 GB, ZeRO 2", "")
    yield f"{6800 * EPOCHS // BATCH} steps; the model and the examples' length are not given."
    yield ""
    yield "| model | ZeRO 2, a GPU | planned at 2,048 tokens | 14 h would be examples of | |"
    yield "|---|---|---|---|---|"
    for name in MODELS:
        one = cell(name, "a100-80", 8, Deepspeed(ZERO2))
        hours = one.time.hours * (6800 * EPOCHS // BATCH) / steps(5000)
        fits = f"{one.memory.gpu / GIB:.0f} of {one.device.bytes / GIB:.0f} GiB"
        tokens = f"{14 / hours * TOKENS / 1000:,.0f} thousand tokens"
        verdict = f"14 h is {14 / hours:.0f} times as long" if one.fits else "does not fit with ZeRO 2"
        yield f"| {MODELS[name][0]} | {fits} | {hours:.2f} h | {tokens} | {verdict} |"
