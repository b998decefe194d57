"""The step as an expert writes it down in plain PyTorch: `python bare_loop.py FOLDER`.

Labels are shifted on the way in, so that no logits are copied; the loss is read once a step.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from torch.nn.functional import cross_entropy


def main(folder: Path, after: Callable[..., Any] = lambda *_: None) -> None:
    """`after` is called at the end of every step, counted from 1: (gate, step, model, optimizer)."""
    options, gate = common.settings(folder), common.Gate()
    tokens, rows = np.load(options["tokens"], mmap_mode="r"), options["rows"]
    model = common.model(options)
    adamw = common.optimizer(model, options)
    parameters = list(model.parameters())
    gate.watch(model)
    for step in count():
        gate.step()
        inputs = torch.from_numpy(tokens[step * rows : (step + 1) * rows].astype(np.int64))
        labels = torch.nn.functional.pad(inputs[:, 1:], (0, 1), value=-100)
        with torch.autocast("cpu", torch.bfloat16, enabled=options["bf16"]):
            logits = model(input_ids=inputs).logits
        loss = cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, options["clip"], foreach=True)
        adamw.step()
        adamw.zero_grad(set_to_none=True)
        gate.values["loss"] = loss.item()
        after(gate, step + 1, model, adamw)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
