"""AdamW as both torch engines use it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from trainer.config import Optim


class Optimizer:
    """AdamW over named fp32 parameters; its state is made before the first step, so that a load needs none."""

    def __init__(self, model: torch.nn.Module, settings: Optim, with_state: bool = True) -> None:
        """Without its state: for who steps on other tensors than the parameters, and calls `make_state` of these."""
        self.named = dict(model.named_parameters())
        self.clip = settings.clip
        matrices = [p for p in self.named.values() if p.ndim >= 2]
        others = [p for p in self.named.values() if p.ndim < 2]  # biases and norms do not decay
        self.adamw = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=settings.lr,
            betas=settings.betas,
            eps=settings.eps,
            fused=True,
        )
        if with_state:
            self.make_state(self.named.values())

    def make_state(self, parameters: Iterable[Tensor]) -> None:
        """The moments of what AdamW steps on, and its count of steps."""
        for parameter in parameters:
            self.adamw.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }

    def set_rate(self, lr: float) -> None:
        for group in self.adamw.param_groups:
            group["lr"] = lr

    def step(self, lr: float) -> Tensor:
        norm = torch.nn.utils.clip_grad_norm_(self.named.values(), self.clip)
        self.set_rate(lr)
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)
        return norm

    def state(self, name: str) -> dict[str, Tensor]:
        return self.adamw.state[self.named[name]]
