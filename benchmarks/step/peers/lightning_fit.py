"""Lightning: `python lightning_fit.py FOLDER`.

In bf16 its own clipping refuses a fused AdamW, so that torch's is called from its hook.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import common
import lightning
import torch
from lightning.pytorch.callbacks import Callback

GATE = common.Gate()


class Module(lightning.LightningModule):  # type: ignore[misc]
    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__()
        self.options, self.network = options, common.model(options)

    def training_step(self, batch: dict[str, torch.Tensor], index: int) -> torch.Tensor:
        return self.network(**batch).loss  # type: ignore[no-any-return]

    def configure_optimizers(self) -> Any:
        return common.optimizer(self.network, self.options)

    def configure_gradient_clipping(self, *_: Any, **__: Any) -> None:
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.options["clip"])
        GATE.mark("adamw")  # Lightning runs the passes inside the optimizer's step


class Steps(Callback):  # type: ignore[misc]
    def on_train_batch_start(self, *_: Any) -> None:
        GATE.step()

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: dict[str, torch.Tensor], *_: Any) -> None:
        GATE.values["loss"] = outputs["loss"].item()


def main(folder: Path) -> None:
    options = common.settings(folder)
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        precision="bf16-mixed" if options["bf16"] else "32-true",
        max_steps=options["steps"],
        default_root_dir=folder,
        callbacks=[Steps()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = Module(options)
    GATE.watch(module.network)
    trainer.fit(module, torch.utils.data.DataLoader(common.dataset(options), batch_size=options["rows"]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
