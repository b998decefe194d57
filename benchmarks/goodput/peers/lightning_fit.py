"""Lightning with its automatic requeue: `srun python lightning_fit.py FOLDER`, a task a rank.

At SIGUSR1 (`#SBATCH --signal=SIGUSR1@90`) it saves hpc_ckpt_N.ckpt and requeues its job.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

import common

FOLDER = Path(sys.argv[1])
LOG = common.Log(FOLDER)
LOG.start()

import lightning  # noqa: E402
import torch  # noqa: E402
from lightning.pytorch.callbacks import Callback, ModelCheckpoint  # noqa: E402
from lightning.pytorch.plugins.environments import SLURMEnvironment  # noqa: E402

LOG.tell("imported")


class Module(lightning.LightningModule):  # type: ignore[misc]
    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__()
        self.options, self.network = options, common.model(options)

    def training_step(self, batch: dict[str, torch.Tensor], index: int) -> torch.Tensor:
        return self.network(**batch).loss  # type: ignore[no-any-return]

    def configure_optimizers(self) -> dict[str, Any]:
        adamw = common.optimizer(self.network, self.options)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(adamw, self.options["steps"])
        return {"optimizer": adamw, "lr_scheduler": {"scheduler": cosine, "interval": "step"}}


class Steps(Callback):  # type: ignore[misc]
    def on_train_start(self, *_: Any) -> None:
        LOG.tell("ready")

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        LOG.tell("step", step=trainer.global_step)


def newest(folder: Path) -> str | None:
    """Of what a requeue and what the interval has saved. Of itself fit() looks at the requeue's alone."""
    found = max(folder.glob("*.ckpt"), key=lambda path: path.stat().st_mtime, default=None)
    return str(found) if found else None


def main() -> None:
    options, output = common.settings(FOLDER), FOLDER / "lightning"
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=options["ranks"],
        strategy="ddp",
        plugins=[SLURMEnvironment(auto_requeue=True, requeue_signal=signal.SIGUSR1)],
        max_steps=options["steps"],
        gradient_clip_val=1.0,
        default_root_dir=output,
        callbacks=[Steps(), ModelCheckpoint(dirpath=output, every_n_train_steps=options["every"])],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = torch.utils.data.DataLoader(common.dataset(options), batch_size=options["micro_batch_size"])
    trainer.fit(Module(options), loader, ckpt_path=newest(output), weights_only=False)
    if trainer.global_step >= options["steps"]:
        LOG.tell("done")


if __name__ == "__main__":
    main()
