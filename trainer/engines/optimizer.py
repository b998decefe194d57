"""AdamW as the engines use it: one face for torch's own and for the lean one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from trainer.engines.eight_bit import Kept
from trainer.engines.lean import LeanAdamW, State
from trainer.engines.shard import Shard
from trainer.schema import TrainConfig


class Optimizer:
    """Over named parameters, whole or sharded by fully_shard. Its state is made before the first step, so that a load
    needs none."""

    def __init__(self, model: torch.nn.Module, config: TrainConfig, with_state: bool = True) -> None:
        """Without its state: for who steps on other tensors than the parameters, and calls `make_state` of these."""
        self.named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self.clip = config.optim.clip
        self._decay = config.optim.weight_decay
        self._lean: LeanAdamW | None = None
        self._states: dict[str, State] = {}
        if config.lean_optimizer:
            self._lean = lean_adamw(config, next(local(parameter).device for parameter in self.named.values()))
            self._offsets = {name: flat_offset(parameter) for name, parameter in self.named.items()}
            for name, parameter in self.named.items():
                self._states[name] = self._lean.new_state(local(parameter).numel(), local(parameter).device)
            return
        self.adamw = torch.optim.AdamW(self._groups(), betas=config.optim.betas, eps=config.optim.eps, fused=True)
        if with_state:
            self.make_state(self.named.values())

    def _groups(self) -> list[dict[str, Any]]:
        """Biases and norms do not decay."""
        matrices: list[Tensor] = []
        others: list[Tensor] = []
        for parameter in self.named.values():
            shape = getattr(parameter, "ds_shape", parameter.shape)  # what ZeRO 3 has shared out is flat
            (matrices if len(shape) >= 2 else others).append(parameter)
        return [{"params": matrices, "weight_decay": self._decay}, {"params": others, "weight_decay": 0.0}]

    def make_state(self, parameters: Iterable[Tensor]) -> None:
        """The moments of what AdamW steps on, and its count of steps."""
        for parameter in parameters:
            self.adamw.state.pop(parameter, None)  # DeepSpeed makes its own: it is gone before ours is there
            self.adamw.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }

    def set_rate(self, lr: float) -> None:
        for group in self.adamw.param_groups:
            group["lr"] = lr

    def skip_unless_finite(self, norm: Tensor) -> None:
        """Tell AdamW's kernel on the device itself: the host need not wait for the norm."""
        self.adamw.found_inf = (~torch.isfinite(norm)).float()  # type: ignore[attr-defined]

    def step(self, lr: float, number: int) -> Tensor:
        """Clip, step, drop the gradients; collective where they are sharded. Returns the norm before clipping. With a
        norm that is not finite nothing steps. `number`: of the step, from 1."""
        if self._lean is not None:
            return self._lean_step(self._lean, lr, number)
        gradients = [parameter.grad for parameter in self.named.values() if parameter.grad is not None]
        norm = whole(torch.nn.utils.get_total_norm(gradients))
        self.set_rate(lr)
        self.skip_unless_finite(norm)
        # AdamW's kernel divides each gradient as it reads it: clipping costs no pass of its own over all of them.
        self.adamw.grad_scale = torch.clamp((norm + 1e-6) / self.clip, min=1.0)  # type: ignore[attr-defined]
        self.adamw.step()
        for parameter in self.named.values():
            parameter.grad = None
        return norm

    def _lean_step(self, lean: LeanAdamW, lr: float, number: int) -> Tensor:
        gradients = {name: parameter.grad for name, parameter in self.named.items() if parameter.grad is not None}
        norms = [torch.linalg.vector_norm(gradient, dtype=torch.float32) for gradient in gradients.values()]
        norm = whole(torch.linalg.vector_norm(torch.stack(norms)))
        clip = torch.clamp(self.clip / (norm + 1e-6), max=1.0)
        lean.begin(lr, number, torch.isfinite(norm))
        for name in list(gradients):
            parameter = self.named[name]
            weights, gradient = local(parameter.detach()).view(-1), local(gradients.pop(name)).view(-1)
            parameter.grad = None
            decay = self._decay if parameter.ndim >= 2 else 0.0
            lean.step(name, weights, gradient, self._states[name], self._offsets[name], decay, clip)
        return norm

    @contextmanager
    def shown(self, see: Callable[[Tensor, Tensor], None]) -> Iterator[None]:
        """Meanwhile an engine's step changes nothing: `see` is given each tensor that would step, and its gradient, as
        this rank holds them, flat and not clipped."""
        clip, self.clip = self.clip, math.inf

        def stay(adamw: torch.optim.Optimizer, *_: Any) -> None:
            for parameter in stepping(adamw):
                if parameter.grad is not None:
                    see(parameter, local(parameter.grad).view(-1))
                adamw.found_inf = torch.ones((), device=parameter.device)  # type: ignore[attr-defined]

        hook = self.adamw.register_step_pre_hook(stay)
        try:
            yield
        finally:
            hook.remove()
            self.clip = clip

    def after_step(self, change: Callable[[Tensor, Tensor], None]) -> None:
        """From here on `change` is called with each tensor when AdamW has stepped on it, before anything follows from
        its weights, and with the rate, a scalar: 0 where nothing stepped."""

        def then(adamw: torch.optim.Optimizer, *_: Any) -> None:
            rate = (1 - adamw.found_inf) * adamw.param_groups[0]["lr"]  # type: ignore[attr-defined]
            for parameter in stepping(adamw):
                change(parameter, rate)

        self.adamw.register_step_post_hook(then)

    def state(self, name: str) -> dict[str, Any]:
        if self._lean is not None:
            return vars(self._states[name])
        return dict(self.adamw.state[self.named[name]])

    def shards(self) -> Iterator[Shard]:
        """What this rank holds of each parameter: whole rows, contiguous in its flat form, and none of a small one."""
        for name, parameter in self.named.items():
            state = self.state(name)
            weights = local(parameter.detach()).view(-1)
            flat: dict[str, Kept] = {"weights": weights}
            for kind in ("exp_avg", "exp_avg_sq"):
                flat[kind] = local(state[kind]).view(-1) if isinstance(state[kind], Tensor) else state[kind]
            start = flat_offset(parameter)
            yield Shard(name, tuple(parameter.shape), start, start + weights.numel(), flat, state["step"])


def stepping(adamw: torch.optim.Optimizer) -> Iterator[Tensor]:
    """What AdamW steps on now: under ZeRO one flat tensor after the other."""
    return (parameter for group in adamw.param_groups for parameter in group["params"])


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor; of another one all of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """Collective for a sharded tensor."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def flat_offset(parameter: Tensor) -> int:
    """Index of the local part's first element in the flattened parameter."""
    if not isinstance(parameter, DTensor):
        return 0
    _, offset = compute_local_shape_and_global_offset(parameter.shape, parameter.device_mesh, parameter.placements)
    return int(offset[0]) * math.prod(parameter.shape[1:])


def lean_adamw(config: TrainConfig, device: torch.device) -> LeanAdamW:
    """AdamW on what the config keeps in less than fp32."""
    optim, kept = config.optim, torch.bfloat16 if config.train.precision == "bf16" else torch.float32
    return LeanAdamW(optim.betas, optim.eps, None if optim.name == "adamw_8bit" else kept, config.train.seed, device)
