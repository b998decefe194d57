"""Documents of many lengths in plain PyTorch with what transformers makes of them: `python packed_loop.py FOLDER`.

padded: a batch is as long as its longest document. position_ids: DataCollatorWithFlattening lays documents end to end,
and the model makes of the positions a mask for sdpa. The loss is the model's own, as these labels are meant for it.
"""

from __future__ import annotations

import json
import sys
from itertools import cycle
from pathlib import Path
from typing import Any

import common
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import DataCollatorWithFlattening


def padded(documents: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    tokens = [torch.tensor(document["input_ids"]) for document in documents]
    mask = pad_sequence([torch.ones_like(one) for one in tokens], batch_first=True)
    inputs, labels = (pad_sequence(tokens, batch_first=True, padding_value=value) for value in (0, -100))
    return {"input_ids": inputs, "attention_mask": mask, "labels": labels}


COLLATORS: dict[str, Any] = {"padded": padded, "position_ids": DataCollatorWithFlattening()}


def main(folder: Path) -> None:
    options, gate = common.settings(folder), common.Gate()
    batches = json.loads(Path(options["batches"]).read_text())
    collate = COLLATORS[options["collator"]]
    model = common.model(options)
    adamw = common.optimizer(model, options)
    parameters = list(model.parameters())
    gate.watch(model)
    for documents in cycle(batches):
        gate.step()
        batch = collate(documents)
        with torch.autocast("cpu", torch.bfloat16, enabled=options["bf16"]):
            loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, options["clip"], foreach=True)
        adamw.step()
        adamw.zero_grad(set_to_none=True)
        tokens = sum(len(document["input_ids"]) for document in documents)
        gate.values |= {"loss": loss.item(), "tokens": tokens, "slots": batch["input_ids"].numel()}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
