"""transformers' Trainer with its just-in-time checkpoint: `srun python hf_trainer.py FOLDER`, a task a rank.

At SIGTERM it saves and stops; the job's script requeues itself, since on Slurm before 24.05 a job that ends within a
preemption's grace is over.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import common

FOLDER = Path(sys.argv[1])
LOG = common.Log(FOLDER)
LOG.start()
for name, slurm in (("RANK", "PROCID"), ("LOCAL_RANK", "LOCALID"), ("WORLD_SIZE", "NTASKS")):
    os.environ[name] = os.environ[f"SLURM_{slurm}"]
os.environ |= {"MASTER_ADDR": os.environ["SLURMD_NODENAME"], "MASTER_PORT": "29500"}

from transformers import Trainer, TrainerCallback, TrainingArguments  # noqa: E402
from transformers.trainer_utils import get_last_checkpoint  # noqa: E402

LOG.tell("imported")


class Steps(TrainerCallback):  # type: ignore[misc]
    def on_train_begin(self, *_, **__):  # type: ignore[no-untyped-def]
        LOG.tell("ready")

    def on_step_end(self, args, state, control, **_):  # type: ignore[no-untyped-def]
        LOG.tell("step", step=state.global_step)


def main() -> None:
    options, output = common.settings(FOLDER), FOLDER / "trainer"
    arguments = TrainingArguments(
        output_dir=str(output),
        enable_jit_checkpoint=True,
        max_steps=options["steps"],
        per_device_train_batch_size=options["micro_batch_size"],
        learning_rate=options["lr"],
        adam_beta2=0.95,
        lr_scheduler_type="cosine",
        optim="adamw_torch_fused",
        max_grad_norm=1.0,
        save_steps=options["every"],
        save_total_limit=2,
        logging_steps=50,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        ddp_backend="gloo",
        dataloader_pin_memory=False,
    )
    trainer = Trainer(
        model=common.model(options), args=arguments, train_dataset=common.dataset(options), callbacks=[Steps()]
    )
    last = get_last_checkpoint(output) if output.is_dir() else None
    trainer.train(resume_from_checkpoint=last)
    if trainer.state.global_step >= options["steps"]:
        LOG.tell("done")
        (FOLDER / "finished").touch()


if __name__ == "__main__":
    main()
