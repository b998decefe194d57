"""One rank: resume as the trainer does, then compare all that it holds with what the safetensors library reads.

python -m tests.trainer.check_loaded RUN_DIR/config.yaml CHECKPOINT
"""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from trainer import config
from trainer.attempt import Attempt
from trainer.checkpoint.format import read_manifest
from trainer.engines.ddp.settings import Ddp
from trainer.engines.eight_bit import EightBit
from trainer.run import Training
from trainer.runtime import start


def assemble(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Every master and moment, `kind/name` -> flat, put together without our own reader."""
    pieces = [item for file in sorted(checkpoint.glob("*.safetensors")) for item in load_file(file).items()]
    found: dict[str, list[tuple[int, torch.Tensor]]] = {}
    for key, values in pieces:
        match = re.fullmatch(r"((?:weights|exp_avg|exp_avg_sq)/.+)\[(\d+):(\d+)\]", key)
        if match:
            assert len(values) == int(match[3]) - int(match[2])
            found.setdefault(match[1], []).append((int(match[2]), values))
    return {key: torch.cat([values for _, values in sorted(parts, key=lambda p: p[0])]) for key, parts in found.items()}


def main(config_path: Path, checkpoint: Path) -> None:
    settings = config.read(config_path)
    training = Training(settings, Attempt(settings, start(config_path.parent, longest_wait=60)))
    training.set_up()
    expected = assemble(checkpoint)
    whole = settings.engine == Ddp() and read_manifest(checkpoint).layout["engine"] == "ddp"
    held = 0
    for shard in training.engine.shards():
        for kind, kept in shard.tensors.items():
            saved = expected[f"{kind}/{shard.name}"]
            assert len(saved) == math.prod(shard.shape)
            mine, wanted = kept[:], saved[shard.start : shard.stop]
            if isinstance(kept, EightBit) and not whole:  # other blocks have other scales
                assert bool(((mine - wanted).abs() <= 0.03 * wanted.abs().max()).all()), (shard.name, kind)
            else:
                assert mine.dtype == wanted.dtype and torch.equal(mine, wanted), (shard.name, kind)
            held += len(mine)
        assert int(shard.step.item()) == training.progress.step
    print(f"held {held}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
