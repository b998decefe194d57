"""transformers' Trainer: `python hf_trainer.py FOLDER`. What it logs goes to the log of its process.

It saves every `save_every` steps, and goes on from the checkpoint `resume`, where its settings say so.
"""

from __future__ import annotations

import sys
from pathlib import Path
from time import perf_counter
from typing import Any

import common
from transformers import Trainer, TrainerCallback, TrainingArguments

GATE = common.Gate()


class Steps(TrainerCallback):  # type: ignore[misc]
    def on_step_begin(self, *_: Any, **__: Any) -> None:
        GATE.step()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ended = perf_counter()

    def on_save(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        GATE.values["fsync"] = common.fsync(Path(args.output_dir) / f"checkpoint-{state.global_step}")
        GATE.values["durable"] = perf_counter() - self.ended

    def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
        GATE.values["loss"] = float(logs["loss"])


def main(folder: Path) -> None:
    options = common.settings(folder)
    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"),
        max_steps=options["steps"],
        per_device_train_batch_size=options["rows"],
        train_sampling_strategy="sequential",
        learning_rate=options["lr"],
        lr_scheduler_type="constant",
        optim="adamw_torch_fused",
        adam_beta1=options["betas"][0],
        adam_beta2=options["betas"][1],
        adam_epsilon=options["eps"],
        weight_decay=options["decay"],
        max_grad_norm=options["clip"],
        bf16=options["bf16"],
        torch_compile=options.get("compiled", False),
        logging_steps=options["logged_every"],
        save_strategy="steps" if "save_every" in options else "no",
        save_steps=options.get("save_every", 500),
        save_total_limit=2,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    network = common.model(options)
    GATE.watch(network)
    trainer = Trainer(model=network, args=arguments, train_dataset=common.dataset(options), callbacks=[Steps()])
    trainer.train(resume_from_checkpoint=options.get("resume"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
