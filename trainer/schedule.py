"""The learning rate: a pure function of the step, so that there is nothing to save and nothing to mismatch."""

from __future__ import annotations

import math

from trainer.config import Optim


def learning_rate(step: int, total: int, optim: Optim) -> float:
    """Rate of optimizer step `step` (from 0) of `total`: linear warmup, then a cosine to optim.min_lr of the peak."""
    warmup = round(total * optim.warmup)
    if step < warmup:
        return optim.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, total - 1 - warmup)
    return optim.lr * (optim.min_lr + (1 - optim.min_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))
