"""`python -m trainer.prepare RUN_DIR/config.yaml`: tokenize the run's data before it is queued."""

from __future__ import annotations

import sys
from pathlib import Path

from settings import ConfigError
from trainer.checkpoint import CheckpointBroken
from trainer.checkpoint.format import read_manifest
from trainer.config import differences, read
from trainer.data.prepare import cache_folder, prepare, prepare_source
from trainer.exits import CONFIG
from trainer.model_config import check_vocabulary, new_config
from trainer.plan import total_steps
from trainer.schema import TrainConfig


def main(config_path: Path) -> None:
    """Prepare every split that the run will read, and see that it is enough. Raises ConfigError."""
    config = read(config_path)
    if config.model.path is None:  # a mistake in it would cost three starts of all ranks
        check_vocabulary(new_config(config.model).vocab_size, config.model.tokenizer_folder)
    cache = cache_folder(config.data, config_path.parent)
    prepared = prepare(config.data, config.model.tokenizer_folder, cache, "train")
    steps = total_steps(config.train, prepared.sequences)
    print(f"data: {prepared.sequences:,} sequences of {config.data.seq_len} tokens; {steps:,} steps")
    if config.fork is not None:
        check_fork(config, Path(config.fork), steps)
    if config.evaluation.every:
        prepare(config.data, config.model.tokenizer_folder, cache, "evaluation")
    for name, source in config.to_keep.items():
        prepare_source(name, source, config.data, config.model.tokenizer_folder, cache)


def check_fork(config: TrainConfig, checkpoint: Path, steps: int) -> None:
    """The checkpoint of another run can be read and fits this model. Raises ConfigError."""
    try:
        manifest = read_manifest(checkpoint)
    except CheckpointBroken as error:
        raise ConfigError(f"--fork: {checkpoint}: {error}: take another: --fork RUN@STEP") from None
    if manifest.step >= steps:
        raise ConfigError(f"--fork: the checkpoint is of step {manifest.step}, this run has {steps}: raise train.steps")
    was, now = manifest.config["model"].get("config"), config.model.config
    if config.model.path is None and was != now:
        changed = ", ".join(f"{key} {old} -> {new}" for key, old, new in differences(was or {}, now or {}))
        raise ConfigError(f"--fork: the checkpoint is of another model: model.config: {changed}")


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except ConfigError as error:
        print(f"outlast: {error}", file=sys.stderr)
        sys.exit(CONFIG)
