"""What the peers' scripts share: one model, one set of tokens, and a log of when what happened.

Runs in benchmarks/.venv and imports nothing of Outlast.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any


class Log:
    """FOLDER/log.jsonl, a line an event. Rank 0 alone writes it, each line by one call, so that a kill tears none."""

    def __init__(self, folder: Path) -> None:
        self.leads = os.environ["SLURM_PROCID"] == "0"
        self.file = os.open(folder / "log.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def tell(self, event: str, **values: Any) -> None:
        if self.leads:
            os.write(self.file, (json.dumps({"event": event, "time": time.time()} | values) + "\n").encode())

    def start(self) -> None:
        self.tell("start", time=process_start("self"))


def process_start(pid: int | str) -> float:
    """Unix seconds, to a hundredth."""
    ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    boot = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    return boot + ticks / os.sysconf("SC_CLK_TCK")


def settings(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "settings.json").read_text()))


def model(options: dict[str, Any]) -> Any:
    """fp32, with weights drawn from the seed."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = {key: value for key, value in options["model"].items() if key != "model_type"}
    return LlamaForCausalLM(LlamaConfig(**shape, attn_implementation="sdpa"))


def dataset(options: dict[str, Any]) -> Any:
    """The sequences of the run, tokens (T,) each, in the order in which Outlast reads them."""
    import numpy as np
    import torch

    class Sequences(torch.utils.data.Dataset):  # type: ignore[type-arg]
        def __init__(self) -> None:
            self.tokens = np.load(options["tokens"], mmap_mode="r")

        def __len__(self) -> int:
            return len(self.tokens)

        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            tokens = torch.from_numpy(self.tokens[index].astype(np.int64))
            return {"input_ids": tokens, "labels": tokens}

    return Sequences()


def optimizer(network: Any, options: dict[str, Any]) -> Any:
    import torch

    return torch.optim.AdamW(network.parameters(), lr=options["lr"], betas=(0.9, 0.95), weight_decay=0.0, fused=True)
