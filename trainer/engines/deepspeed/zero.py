"""DeepSpeed's own JSON beside the recipe: compared, completed. Torch-free: a login node does it in milliseconds.

`auto` means what it means to transformers: the recipe's value, and bucket sizes from the model's hidden size
(transformers/integrations/deepspeed.py, 5.23.0).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from settings import ConfigError, nearest
from trainer.engines.deepspeed.scratch import OFFLOADS
from trainer.engines.deepspeed.settings import Deepspeed
from trainer.layout import BatchLayout
from trainer.schema import TrainConfig

AUTO = "auto"
MICRO, ACCUMULATION, TOTAL = "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "train_batch_size"

# Keys of DeepSpeed 0.19.8 that mean something to this trainer's use of it; its own checks see to their values.
_TOP = {
    *(MICRO, ACCUMULATION, TOTAL, "gradient_clipping", "zero_optimization", "bf16", "fp16", "optimizer", "scheduler"),
    *("communication_data_type", "data_types", "prescale_gradients", "gradient_predivide_factor", "torch_autocast"),
    *("sparse_gradients", "seq_parallel_communication_data_type", "zero_allow_untested_optimizer"),
    *("zero_force_ds_cpu_optimizer", "steps_per_print", "wall_clock_breakdown", "memory_breakdown", "dump_state"),
    *("comms_logger", "flops_profiler", "aio", "activation_checkpointing", "log_level", "disable_allgather"),
}
_ZERO = {
    *("stage", "offload_optimizer", "offload_param", "overlap_comm", "contiguous_gradients", "reduce_scatter"),
    *("reduce_bucket_size", "allgather_partitions", "allgather_bucket_size", "sub_group_size", "round_robin_gradients"),
    *("stage3_prefetch_bucket_size", "stage3_param_persistence_threshold", "stage3_max_live_parameters"),
    *("stage3_max_reuse_distance", "stage3_gather_16bit_weights_on_model_save", "stage3_module_granularity_threshold"),
    *("stage3_model_persistence_threshold", "stage3_use_all_reduce_for_fetch_params", "stage3_allgather_sequential"),
    *("zero_hpz_partition_size", "zero_quantized_weights", "zero_quantized_gradients", "log_trace_cache_warnings"),
    *("ignore_unused_parameters", "use_multi_rank_bucket_allreduce", "memory_efficient_linear", "elastic_checkpoint"),
    *("load_from_fp32_weights", "legacy_stage1", "pipeline_loading_checkpoint", "override_module_apply"),
}


def with_batch(tree: dict[str, Any], world_size: int) -> dict[str, Any]:
    """A new run's tree with the batch that the JSON fixes. Raises ConfigError where the two say different things."""
    engine, train = tree.get("engine"), tree.get("train")
    theirs = engine.get("config") if isinstance(engine, dict) else None
    if not (isinstance(theirs, dict) and isinstance(train, dict)):
        return tree
    train = dict(train)
    micro, accumulation = (theirs.get(key) for key in (MICRO, ACCUMULATION))
    if isinstance(micro, int):
        _same(MICRO, micro, "train.micro_batch_size", train.setdefault("micro_batch_size", micro))
        if isinstance(accumulation, int):
            fixed = micro * accumulation * world_size
            name = f"{MICRO}={micro} x {ACCUMULATION}={accumulation} x {world_size} ranks"
            _same(name, fixed, "train.global_batch_size", train.setdefault("global_batch_size", fixed), " = ")
    if isinstance(total := theirs.get(TOTAL), int):
        _same(TOTAL, total, "train.global_batch_size", train.setdefault("global_batch_size", total))
    return {**tree, "train": train}


def without_batch(engine: Any) -> Any:
    """The engine's part of a recipe without the batch that its JSON fixes."""
    if not isinstance(engine, dict) or not isinstance(engine.get("config"), dict):
        return engine
    kept = {key: value for key, value in engine["config"].items() if key not in (MICRO, ACCUMULATION, TOTAL)}
    return {**engine, "config": kept}


def _same(theirs: str, value: Any, ours: str, other: Any, equals: str = "=") -> None:
    if value != other:
        raise ConfigError(f"engine.config: {theirs}{equals}{value}, but the recipe says {ours}={other}: change one")


def complete(settings: TrainConfig, layout: BatchLayout, hidden_size: int) -> dict[str, Any]:
    """What DeepSpeed is given. The batch is the layout's: at another number of ranks the accumulation is another.

    Raises ConfigError for what it does not know, and where the recipe says something else.
    """
    assert isinstance(settings.engine, Deepspeed)
    theirs = settings.engine.json
    _check_keys("", theirs, _TOP)
    zero = dict(theirs.get("zero_optimization") or {})
    _check_keys("zero_optimization.", zero, _ZERO)
    bf16 = settings.train.bf16_passes
    if settings.lean_optimizer:
        raise ConfigError(
            f"engine.kind=deepspeed keeps fp32 weights and steps by torch's AdamW: not with train.precision="
            f"{settings.train.precision} and optim.name={settings.optim.name}: take train.precision=master32 and "
            f"optim.name=adamw, or engine.kind=fsdp"
        )
    if zero.get("stage") == 3 and settings.train.gradient_checkpointing == "selective":
        raise ConfigError(
            "train.gradient_checkpointing=selective: ZeRO 3 gathers weights inside a layer that is computed again: "
            "torch refuses that: take true or {every_k: 2}, or engine.kind=fsdp"
        )
    if zero.get("stage") == 3 and settings.train.compile:
        raise ConfigError(
            "train.compile: ZeRO 3 gathers weights inside a layer, which cuts its graph into pieces: leave it out, or "
            "engine.kind=fsdp"
        )
    for key, value, ours, other in _told_twice(settings, theirs):
        if value not in (AUTO, None):
            _same(key, value, ours, other)
    _check_possible(theirs, zero, bf16)
    sizes = {
        "reduce_bucket_size": hidden_size**2,
        "stage3_prefetch_bucket_size": int(0.9 * hidden_size**2),
        "stage3_param_persistence_threshold": 10 * hidden_size,
    }
    zero |= {key: size for key, size in sizes.items() if zero.get(key) == AUTO}
    left = {key: value for key, value in theirs.items() if key not in ("optimizer", "fp16") and value != AUTO}
    batch = {MICRO: layout.micro_batch_size, ACCUMULATION: layout.gradient_accumulation_steps}
    batch[TOTAL] = layout.global_batch_size
    # Ours is torch's AdamW, also for what is offloaded.
    adamw = {"zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}
    given = {"gradient_clipping": settings.optim.clip, "bf16": {**(theirs.get("bf16") or {}), "enabled": bf16}}
    out = {"steps_per_print": 10**9, **left, **batch, **adamw, **given, "zero_optimization": zero}
    if left_auto := [key for key, value in _leaves(out) if value == AUTO]:
        raise ConfigError(f"engine.config: {left_auto[0]}=auto has no meaning here: give a value, or leave it out")
    return out


def notes(engine: Deepspeed, layout: BatchLayout) -> list[str]:
    """What of the JSON does not hold at this number of ranks, a line each."""
    said, now = engine.json.get(ACCUMULATION), layout.gradient_accumulation_steps
    other = isinstance(said, int) and said != now
    return [f"engine.config: {ACCUMULATION}={said}: the run's global batch stays, so it is {now}"] * other


def _told_twice(settings: TrainConfig, theirs: Mapping[str, Any]) -> Iterator[tuple[str, Any, str, Any]]:
    """What both may say: key and value of the JSON, key and value of the recipe."""
    optim, bf16 = settings.optim, settings.train.bf16_passes
    yield "gradient_clipping", theirs.get("gradient_clipping"), "optim.clip", optim.clip
    enabled = (theirs.get("bf16") or {}).get("enabled")
    if enabled not in (None, AUTO) and enabled != bf16:
        raise ConfigError(
            f"engine.config: bf16.enabled={json.dumps(enabled)}, but the recipe says "
            f"train.precision={settings.train.precision}: change one"
        )
    params = (theirs.get("optimizer") or {}).get("params") or {}
    values = {"lr": optim.lr, "betas": list(optim.betas), "eps": optim.eps, "weight_decay": optim.weight_decay}
    for key, value in params.items():
        if key in values:
            yield f"optimizer.params.{key}", value, f"optim.{key}", values[key]


def _check_possible(theirs: Mapping[str, Any], zero: Mapping[str, Any], bf16: bool) -> None:
    """Raises ConfigError for what this trainer cannot do with DeepSpeed."""
    stage = zero.get("stage", 0)
    kind = (theirs.get("optimizer") or {}).get("type", "AdamW")
    if stage not in (0, 1, 2, 3):
        raise ConfigError(f"engine.config: zero_optimization.stage={stage}: there are 0, 1, 2 and 3")
    if stage == 0 and bf16:
        raise ConfigError(
            "engine.config: zero_optimization.stage=0 keeps no fp32 weights in bf16: take stage 1, or "
            "train.precision=fp32"
        )
    if (theirs.get("fp16") or {}).get("enabled") is True:
        raise ConfigError("engine.config: fp16.enabled=true: this trainer knows bf16 and fp32: take bf16")
    if str(kind).lower() not in ("adam", "adamw"):
        raise ConfigError(f"engine.config: optimizer.type={kind}: this trainer steps by AdamW: leave it out")
    if "scheduler" in theirs:
        raise ConfigError(
            "engine.config: scheduler: the learning rate is the recipe's (optim.schedule, optim.warmup): leave it out"
        )
    for what in OFFLOADS:
        _check_offload(f"engine.config: zero_optimization.{what}", stage, zero.get(what) or {})


def _check_offload(name: str, stage: int, part: Mapping[str, Any]) -> None:
    device, path = part.get("device", "none"), part.get("nvme_path")
    if device not in ("none", "cpu", "nvme"):
        raise ConfigError(f"{name}.device={device}: take nvme, cpu, or none")
    if device != "nvme":
        return
    if stage != 3:
        raise ConfigError(f"{name}.device=nvme: ZeRO 3 alone swaps to a disk: take stage 3, or cpu")
    if not isinstance(path, str) or not path.startswith("/"):
        said = "is not given" if path is None else f"is {json.dumps(path)}"
        raise ConfigError(f"{name}.nvme_path {said}: name a folder of the nodes' own disks, from / on")
    count = part.get("buffer_count")
    if name.endswith("offload_optimizer") and isinstance(count, int) and count < 4:
        raise ConfigError(f"{name}.buffer_count={count}: weights, gradient and both moments are moved at once: take 4")


def _check_keys(path: str, theirs: Mapping[str, Any], known: set[str]) -> None:
    for key in theirs:
        if key not in known:
            near = nearest(key, known)
            hint = f"did you mean {near}?" if near else "DeepSpeed knows no such key, or this trainer has no use for it"
            raise ConfigError(f"engine.config: {path}{key}: {hint}")


def _leaves(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value
