"""One rank: resumes as the trainer does, and compares its model's logits with those of the run's export, bit for bit.

python -m tests.trainer.logits_of_run RUN_DIR/config.yaml EXPORT
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from trainer import config
from trainer.attempt import Attempt
from trainer.model.loss import LossModel
from trainer.run import Training
from trainer.runtime import start


def main(config_path: Path, export: Path) -> None:
    settings = config.read(config_path)
    training = Training(settings, Attempt(settings, start(config_path.parent, longest_wait=60)))
    training.set_up()
    (loss,) = (part for part in training.engine.module.modules() if isinstance(part, LossModel))
    ours: Any = loss.model.eval()
    theirs: Any = AutoModelForCausalLM.from_pretrained(export, attn_implementation="sdpa").eval()
    tokens = torch.arange(5, 37).reshape(2, 16)
    computed_in_bf16 = settings.train.bf16_passes and not settings.train.bf16_weights
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=computed_in_bf16):
        assert torch.equal(ours(input_ids=tokens).logits, theirs(input_ids=tokens).logits)
    print(f"the same after step {training.progress.step}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
