"""The loop of accelerate's documentation: `python accelerate_loop.py FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

import common
import torch
from accelerate import Accelerator


def main(folder: Path) -> None:
    options, gate = common.settings(folder), common.Gate()
    accelerator = Accelerator(mixed_precision="bf16" if options["bf16"] else "no", cpu=True)
    network = common.model(options)
    gate.watch(network)
    loader = torch.utils.data.DataLoader(common.dataset(options), batch_size=options["rows"])
    model, adamw, batches = accelerator.prepare(network, common.optimizer(network, options), loader)
    gate.step()
    for batch in batches:
        loss = model(**batch).loss
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), options["clip"])
        adamw.step()
        adamw.zero_grad()
        gate.values["loss"] = loss.item()
        gate.step()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
