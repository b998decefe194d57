"""The learning rate: a pure function of the step, so that there is nothing to save and nothing to mismatch."""

from __future__ import annotations

import math

from trainer.data.values import Form
from trainer.schema import Optim, TrainConfig


def learning_rate(step: int, total: int, optim: Optim) -> float:
    """Rate of optimizer step `step` (from 0) of `total`: a linear warmup from 0, then the schedule, from the peak on.

    From the end of the warmup on it is the rate that transformers' schedulers give the same step.
    """
    warmup = round(total * optim.warmup)
    if step < warmup:
        return optim.peak * (step + 1) / warmup  # no step is spent at 0
    if optim.schedule == "constant":
        return optim.peak
    start = max(warmup, total - round(total * optim.decay)) if optim.schedule == "wsd" else warmup
    progress = max(0, step - start) / max(1, total - start)
    height = 1 - progress if optim.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return optim.peak * (optim.min_lr + (1 - optim.min_lr) * height)


def notes(settings: TrainConfig) -> list[str]:
    """What speaks against the peak rates of a run that starts from existing weights."""
    if settings.model.path is None or settings.lora is not None:
        return []
    if settings.stages is None:
        return _notes("optim.lr", settings.optim.peak, settings.purpose())
    stages = [(f"stages.{stage.name}.optim.lr", stage.optim.lr, settings.purpose(stage)) for stage in settings.stages]
    return [note for key, rate, form in stages if rate is not None for note in _notes(key, rate, form)]


def _notes(key: str, rate: float, form: Form) -> list[str]:
    if form == "text":
        why = "continual pre-training at such a rate forgets what the model knew faster than it learns the new texts"
        return [f"{key}={rate:g} is above 1e-5: {why}"] if rate > 1e-5 else []
    if rate > 5e-5:
        why = "full instruction tuning at such a rate overwrites what the model knew; usual is 1e-5 to 5e-5"
        return [f"{key}={rate:g} is above 5e-5: {why}"]
    if rate < 1e-5:
        why = "full instruction tuning at such a rate hardly changes the weights in a few epochs; usual is 1e-5 to 5e-5"
        return [f"{key}={rate:g} is below 1e-5: {why}"]
    return []
