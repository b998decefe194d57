"""One rank: resume as the trainer does, then compare all that it holds with what the safetensors library reads.

python -m tests.trainer.check_loaded RUN_DIR/config.yaml CHECKPOINT
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from trainer import config
from trainer.attempt import Attempt
from trainer.run import Training
from trainer.runtime import start


def assemble(checkpoint: Path) -> dict[str, np.ndarray]:
    """Every master and moment, `kind/name` -> flat, put together without our own reader."""
    pieces = [item for file in sorted(checkpoint.glob("*.safetensors")) for item in load_file(file).items()]
    found: dict[str, list[tuple[int, np.ndarray]]] = {}
    for key, values in pieces:
        match = re.fullmatch(r"((?:weights|exp_avg|exp_avg_sq)/.+)\[(\d+):(\d+)\]", key)
        if match:
            assert len(values) == int(match[3]) - int(match[2])
            found.setdefault(match[1], []).append((int(match[2]), values))
    return {
        key: np.concatenate([values for _, values in sorted(parts, key=lambda p: p[0])]) for key, parts in found.items()
    }


def main(config_path: Path, checkpoint: Path) -> None:
    settings = config.read(config_path)
    training = Training(settings, Attempt(settings, start(config_path.parent, longest_wait=60)))
    training.set_up()
    expected = assemble(checkpoint)
    held = 0
    for shard in training.engine.shards():
        for kind, tensor in shard.tensors.items():
            saved = expected[f"{kind}/{shard.name}"]
            assert len(saved) == np.prod(shard.shape)
            assert tensor.numpy().tobytes() == saved[shard.start : shard.stop].tobytes(), (shard.name, kind)
            held += len(tensor)
        assert int(shard.step.item()) == training.progress.step
    print(f"held {held}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
