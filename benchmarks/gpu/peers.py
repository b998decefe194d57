"""What others do with the same model on the same device: transformers' Trainer as it comes, and its loss."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.case import LR
from benchmarks.gpu.ours import Case, shape
from benchmarks.gpu.place import Place
from trainer.model.model_config import new_config
from trainer.shape import Model


def hf_model(case: Case, place: Place, dtype: torch.dtype = torch.float32) -> Any:
    """Random weights, drawn on the device by transformers itself; its attention is SDPA."""
    from transformers.models.auto.modeling_auto import AutoModelForCausalLM

    config = new_config(Model(config=shape(case.size, place.reduced)))
    with place.device:
        return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")


@dataclass
class HfTrainer:
    """transformers' Trainer: eager, with its gradient checkpointing, bf16 by autocast over fp32 weights, torch's fused
    AdamW, one document a sequence. `pure`: weights, gradients and moments in bf16."""

    case: Case
    place: Place
    pure: bool = False
    extra: dict[str, Any] = field(default_factory=dict)
    """Further TrainingArguments."""

    def run(self, pace: Callable[[], Any], steps: int, resume: str | None = None) -> None:
        """Train for so many steps; `pace` is a callback of transformers'. Micro batches that do not fit are halved."""
        micro, accumulation = self.case.micro, self.case.accumulation
        while True:
            try:
                return self._run(pace(), micro, accumulation, steps, resume)
            except torch.OutOfMemoryError:
                if micro == 1:
                    raise
            micro, accumulation = micro // 2, accumulation * 2
            self.place.free()

    def _run(self, pace: Any, micro: int, accumulation: int, steps: int, resume: str | None) -> None:
        from transformers import Trainer, TrainingArguments

        dtype = torch.bfloat16 if self.pure else torch.float32
        with tempfile.TemporaryDirectory(dir=self.place.folder) as folder:
            options: dict[str, Any] = {
                "output_dir": folder,
                "per_device_train_batch_size": micro,
                "gradient_accumulation_steps": accumulation,
                "max_steps": steps,
                "learning_rate": LR,
                "max_grad_norm": 1.0,
                "bf16": not self.pure,
                "gradient_checkpointing": True,
                "optim": "adamw_torch_fused",
                "logging_strategy": "no",
                "save_strategy": "no",
                "report_to": [],
                "use_cpu": self.place.reduced,
                "disable_tqdm": True,
                **self.extra,
            }
            model = hf_model(self.case, self.place, dtype)
            rows = sequences(self.case, model.config.vocab_size, steps)
            trainer = Trainer(model, TrainingArguments(**options), train_dataset=rows, callbacks=[pace])
            trainer.train(resume_from_checkpoint=resume)


def sequences(case: Case, vocabulary: int, steps: int) -> list[dict[str, torch.Tensor]]:
    """Random tokens, all of them targets: for so many steps, the same in each."""
    generator = torch.Generator().manual_seed(0)
    count = case.micro * case.accumulation
    ids = torch.randint(0, vocabulary, (count, case.tokens), generator=generator)
    return [{"input_ids": row, "labels": row} for row in ids] * steps


def pace_of(place: Place, taken: list[float], warm: int = 10, most: int = 30) -> Callable[[], Any]:
    """A callback for Trainer that adds up the seconds of its steps as Place.paced does for ours, and stops it."""
    from transformers import TrainerCallback

    class Pace(TrainerCallback):
        def __init__(self) -> None:
            taken.clear()
            self.done, self.warm = 0, 1 if place.reduced else warm
            self.quarter = time.monotonic() + place.left() / 4

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            place.finish()
            self.began = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            place.finish()
            spent = time.perf_counter() - self.began
            self.done += 1
            if self.done <= 1 or self.done <= self.warm and not taken and time.monotonic() < self.quarter:
                return
            taken.append(spent)
            if len(taken) >= (2 if place.reduced else most) or spent > place.left():
                control.should_training_stop = True

    return Pace


def whole_logits_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """transformers' loss of logits (N, V) that stand whole; `labels` (N,) are shifted already."""
    from transformers.loss.loss_utils import ForCausalLMLoss

    loss: torch.Tensor = ForCausalLMLoss(logits[None], labels[None], logits.shape[-1], shift_labels=labels[None])
    return loss
