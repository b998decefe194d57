"""DeepSpeed's ZeRO, stages 0 to 3, as its own JSON describes it."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from settings import ConfigError
from trainer.data.batches import MicroBatch
from trainer.engines.deepspeed import zero
from trainer.engines.deepspeed.scratch import Scratch, on_disk
from trainer.engines.deepspeed.swapped import Swapped, load_async_io
from trainer.engines.eight_bit import Kept
from trainer.engines.optimizer import Optimizer
from trainer.engines.shard import KINDS, Shard
from trainer.engines.stopwatch import Stopwatch
from trainer.layout import BatchLayout
from trainer.model.loss import LossModel
from trainer.model.model import materialize
from trainer.runtime import Runtime
from trainer.schema import TrainConfig


def build(config: TrainConfig, layout: BatchLayout, model: torch.nn.Module, runtime: Runtime) -> DeepspeedEngine:
    hidden_size = model.config.get_text_config().hidden_size  # type: ignore[operator, union-attr]
    return DeepspeedEngine(config, zero.complete(config, layout, hidden_size), model, runtime)


class DeepspeedEngine:
    def __init__(self, config: TrainConfig, settings: dict[str, Any], model: torch.nn.Module, runtime: Runtime) -> None:
        """`settings`: DeepSpeed's JSON, complete (zero.py)."""
        if runtime.device.type == "cpu":
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
        self._scratch: Scratch | None = None
        if on_disk(settings["zero_optimization"]):
            self._scratch = Scratch(settings["zero_optimization"], runtime.run_dir, runtime.epoch, runtime.rank)
            _settle(self._scratch, config, model, runtime)
            settings = {**settings, "zero_optimization": self._scratch.settings()}
        import deepspeed

        # An all-reduce for inference: on a CPU the first start would compile it, for more than a minute.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        # DeepSpeed 0.19.8 calls torch 2.13's collectives by names that are on their way out, at every step.
        warnings.filterwarnings("ignore", "`torch.distributed", FutureWarning)
        self._runtime = runtime
        self.stopwatch = Stopwatch(model, runtime.device)
        if settings["zero_optimization"].get("stage") == 3:
            # Shared out one by one as they get their memory: no rank ever holds them all.
            deepspeed.init_distributed(verbose=False, dist_init_required=False)
            shared_out = deepspeed.zero.Init(torch.nn.Module(), config_dict_or_path=settings)
            materialize(
                model, runtime.device, shared_out.dtype, lambda one: shared_out._convert_to_zero_parameters([one])
            )
        materialize(model, runtime.device)
        self.optimizer = Optimizer(model, config, with_state=False)
        self.module = deepspeed.initialize(
            model=LossModel(model), optimizer=self.optimizer.adamw, config=settings, dist_init_required=False
        )[0]
        self.optimizer.adamw.register_step_pre_hook(self._skip_unless_finite)
        self._layout = layout_of(self.module, self.optimizer)
        self.replicas = (runtime.rank, runtime.world_size) if isinstance(self._layout, Whole) else (0, 1)

    def loss(self, batch: MicroBatch) -> Tensor:
        return cast(Tensor, self.module(batch))

    def backward(self, batch: MicroBatch, valid_tokens: int, last: bool) -> Tensor:
        self.module.set_gradient_accumulation_boundary(last)
        loss = self.loss(batch)
        # The ranks' gradients are averaged: times their number makes it the sum.
        self.module.backward(loss * (self._runtime.world_size / max(1, valid_tokens)), scale_wrt_gas=False)
        return loss.detach()

    def step(self, lr: float, number: int) -> Tensor:
        if isinstance(self._layout, Whole):  # DeepSpeed's own step clips there, but keeps the norm to itself
            return self.optimizer.step(lr, number)
        self.optimizer.set_rate(lr)
        self.module.optimizer.clip_grad = self.optimizer.clip
        self.module.step()
        return self._norm()

    def _skip_unless_finite(self, *_: Any) -> None:
        """DeepSpeed steps with whatever norm it has found, but for bf16 below stage 3."""
        if not isinstance(self._layout, Whole):
            self.optimizer.skip_unless_finite(self._norm())

    def _norm(self) -> Tensor:
        norm = torch.as_tensor(self.module.optimizer._global_grad_norm)
        return torch.where(norm < 0, torch.inf, norm)  # -1 stands for one that is not finite

    def shards(self) -> Iterator[Shard]:
        return self._layout.shards()

    def refresh(self) -> None:
        self._layout.refresh()

    def close(self) -> None:
        if self._scratch is not None:
            self._scratch.remove()


def _settle(scratch: Scratch, config: TrainConfig, model: torch.nn.Module, runtime: Runtime) -> None:
    """Collective. See that the node has what swapping needs, before a rank writes. Raises ConfigError on all alike."""
    trained, frozen = (sum(p.numel() for p in model.parameters() if p.requires_grad is kind) for kind in (True, False))
    # fp32: weights, both moments, and the gradient, which waits there for the step.
    bytes_each = {
        "offload_optimizer": 16 * trained,
        "offload_param": (trained + frozen) * (2 if config.train.bf16_passes else 4),
    }
    needed = {what: size * runtime.local_world_size // runtime.world_size for what, size in bytes_each.items()}
    largest = max(-(-p.numel() // runtime.world_size) for p in model.parameters())
    checks = (scratch.make, lambda: scratch.check_room(needed), lambda: scratch.check_buffers(largest), load_async_io)
    for check in checks:
        problem = None
        try:
            check()
        except ConfigError as error:
            problem = str(error)
        if problems := [p for p in runtime.gather(problem) if p]:
            scratch.remove()
            raise ConfigError(problems[0])


class StateLayout(Protocol):
    """How a stage keeps the fp32 weights and the moments."""

    def shards(self) -> Iterator[Shard]: ...

    def refresh(self) -> None: ...


def layout_of(module: Any, optimizer: Optimizer) -> StateLayout:
    """Of an engine of DeepSpeed: ours by its stage."""
    if module.zero_optimization_partition_weights():
        return Partitions(module.optimizer, optimizer)
    if hasattr(module.optimizer, "update_lp_params"):
        return Fragments(module.optimizer, optimizer)
    return Whole(optimizer)


class Whole:
    """Stage 0 in fp32: every rank holds everything."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        optimizer.make_state(optimizer.named.values())

    def shards(self) -> Iterator[Shard]:
        return self._optimizer.shards()

    def refresh(self) -> None:
        return None


class Fragments:
    """Stages 1 and 2, and stage 0 in bf16: each group of parameters lies in one flat tensor, of which each rank owns a
    part, wherever in a parameter that begins and ends."""

    def __init__(self, zero: Any, optimizer: Optimizer) -> None:
        self._zero, self._optimizer = zero, optimizer
        flat = getattr(zero, "single_partition_of_fp32_groups", None)
        self._flat: list[Tensor] = zero.fp32_groups_flat_partition if flat is None else flat
        optimizer.make_state(self._flat)

    def shards(self) -> Iterator[Shard]:
        for name, parameter in self._optimizer.named.items():
            mapping = parameter._hp_mapping  # type: ignore[attr-defined]
            if mapping is None:
                flat, start, inside = self._flat[0], 0, slice(0, 0)
            else:
                flat, start = self._flat[mapping.param_group_index], mapping.lp_fragment_address.start
                place = mapping.hp_fragment_address
                inside = slice(place.start, place.start + place.numel)
            yield _shard(name, parameter.shape, start, flat.detach(), self._optimizer.adamw.state[flat], inside)

    def refresh(self) -> None:
        self._zero.update_lp_params()


class Partitions:
    """Stage 3: each rank owns an equal part of every parameter, the last one's filled up. Those of a sub-group lie in
    one flat tensor, which may be swapped out, with its moments, but for a step."""

    def __init__(self, zero: Any, optimizer: Optimizer) -> None:
        self._zero, self._optimizer = zero, optimizer
        for group, flat in enumerate(zero.fp32_partitioned_groups_flat):
            with self._in_memory(group, changed=True):
                optimizer.make_state([flat])

    @contextmanager
    def _in_memory(self, group: int, changed: bool) -> Iterator[None]:
        """Meanwhile a sub-group that is swapped out is there; `changed`: it is written back then."""
        zero = self._zero
        if not zero._swappable_optimizer_subgroup(group):
            yield
            return
        zero._optimizer_states_and_gradient_swap_in(group)
        yield
        (zero._optimizer_states_and_gradient_swap_out if changed else zero._release_swap_buffers)(group)

    def shards(self) -> Iterator[Shard]:
        zero = self._zero
        for name, parameter in self._optimizer.named.items():
            group, offset, size = zero.grad_position[zero.get_param_id(parameter)]
            flat = zero.fp32_partitioned_groups_flat[group]
            whole, shape = parameter.ds_numel, parameter.ds_shape  # type: ignore[attr-defined]
            start = min(whole, size * torch.distributed.get_rank())
            count = min(whole, start + size) - start
            state = self._optimizer.adamw.state[flat]
            if zero._swappable_optimizer_subgroup(group):
                swapped = zero.optimizer_swapper.swap_params_info[flat.ds_id].tensors
                parts = {kind: Swapped(at.swap_path, offset, count) for kind, at in zip(KINDS, swapped, strict=True)}
                yield Shard(name, tuple(shape), start, start + count, parts, state["step"])
            else:
                yield _shard(name, shape, start, flat.detach(), state, slice(offset, offset + count))

    def refresh(self) -> None:
        zero = self._zero
        zero._partition_all_parameters()
        for group in range(len(zero.fp16_groups)):
            with self._in_memory(group, changed=False):
                zero._reassign_or_swap_out_partitioned_parameters(group)
        if zero.persistent_parameters:
            zero.persistent_parameters[0].all_gather(zero.persistent_parameters)


def _shard(name: str, shape: torch.Size, start: int, flat: Tensor, state: dict[str, Tensor], inside: slice) -> Shard:
    """The part `inside` of a flat tensor and its moments: of a parameter that which begins at `start`."""
    tensors = {"weights": flat, "exp_avg": state["exp_avg"].view(-1), "exp_avg_sq": state["exp_avg_sq"].view(-1)}
    parts: dict[str, Kept] = {kind: tensor[inside] for kind, tensor in tensors.items()}
    return Shard(name, tuple(shape), start, start + parts["weights"].numel(), parts, state["step"])
