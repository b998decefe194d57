"""One rank of the benchmark `stops`: `python -m benchmarks.stops.rank outlast|transformers FOLDER`.

Both train the same small Llama on as many ranks with the same batch, saves and evaluations. Every optimizer step that a
rank completes adds a byte to its file, so that what a stop has cost is not a contender's own word.
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path
from typing import Any

WORLD = 3
STEPS = 100
SEQUENCE = 64  # tokens
MICRO, ACCUMULATION = 2, 2
SAVED_EVERY, EVALUATED_EVERY, EVALUATED = 30, 24, 24  # steps, steps, sequences
LEARNING_RATE, SEED = 1e-3, 3
LLAMA: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 2048,
    "max_position_embeddings": SEQUENCE,
    "attention_dropout": 0.1,  # draws from the generator: a resume must restore it
    "tie_word_embeddings": True,
}


def main(contender: str, folder: Path) -> None:
    {"outlast": outlast, "transformers": transformers}[contender](folder)


def count_steps(folder: Path) -> None:
    """Append a byte to this rank's file after every optimizer step."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    file = os.open(folder / f"steps-{os.environ['RANK']}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def count(*_: object) -> None:
        os.write(file, b".")

    register_optimizer_step_post_hook(count)


def outlast(folder: Path) -> None:
    """As the launcher's `python -m trainer`."""
    from trainer.stop import signals

    signals.install()  # its first act, before torch is imported here
    count_steps(folder)
    sys.argv = ["trainer", str(folder / "config.yaml")]
    runpy.run_module("trainer", run_name="__main__", alter_sys=True)


def transformers(folder: Path) -> None:
    """As the Trainer's documentation has it, resuming from the newest checkpoint."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments
    from transformers.trainer_utils import get_last_checkpoint

    count_steps(folder)
    output = folder / "checkpoints"
    output.mkdir(exist_ok=True)
    arguments = TrainingArguments(
        output_dir=str(output),
        enable_jit_checkpoint=True,
        max_steps=STEPS,
        per_device_train_batch_size=MICRO,
        gradient_accumulation_steps=ACCUMULATION,
        learning_rate=LEARNING_RATE,
        seed=SEED,
        save_steps=SAVED_EVERY,
        eval_strategy="steps",
        eval_steps=EVALUATED_EVERY,
        per_device_eval_batch_size=MICRO,
        logging_steps=1,
        use_cpu=True,
        ddp_backend="gloo",
        dataloader_pin_memory=False,
        report_to="none",
        disable_tqdm=True,
    )
    torch.manual_seed(SEED)
    draws = torch.randint(LLAMA["vocab_size"], (STEPS * WORLD * MICRO * ACCUMULATION + EVALUATED, SEQUENCE)).tolist()
    rows = [{"input_ids": tokens, "labels": tokens} for tokens in draws]
    trainer = Trainer(
        model=LlamaForCausalLM(LlamaConfig(**LLAMA)),
        args=arguments,
        train_dataset=rows[EVALUATED:],
        eval_dataset=rows[:EVALUATED],
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(output)))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
