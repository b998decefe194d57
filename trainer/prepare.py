"""`python -m trainer.prepare RUN_DIR/config.yaml`: tokenize the run's data before it is queued."""

from __future__ import annotations

import sys
from pathlib import Path

from settings import ConfigError
from trainer.checkpoint import CheckpointBroken
from trainer.checkpoint.format import read_manifest
from trainer.config import differences, read
from trainer.data.prepare import cache_folder, prepare
from trainer.data.prepared import Pool
from trainer.exits import CONFIG
from trainer.model_config import check_vocabulary, new_config
from trainer.schema import TrainConfig
from trainer.stages import Course


def main(config_path: Path) -> None:
    """Prepare every split that the run will read, and see that it is enough. Raises ConfigError."""
    config = read(config_path)
    if config.model.path is None:  # a mistake in it would cost three starts of all ranks
        check_vocabulary(new_config(config.model).vocab_size, config.model.tokenizer_folder)
    cache = cache_folder(config.data, config_path.parent)
    sources = {
        name: prepare(config.data, config.model.tokenizer_folder, cache, key)
        for name, key in config.data.keys("train").items()
    }
    pool = Pool(sources)
    course = Course(config, pool.sizes)
    for name, source in pool.sources.items():
        if name:
            print(f"source {name}: {source.sequences:,} sequences, {source.sequences * source.seq_len:,} tokens")
    print(f"data: {pool.sequences:,} sequences of {config.data.seq_len} tokens; {course.steps:,} steps")
    if config.stages is not None:
        print("\n".join(course.table()))
    if config.fork is not None:
        check_fork(config, Path(config.fork), course.steps)
    if config.evaluation.every:
        for key in config.data.keys("evaluation").values():
            prepare(config.data, config.model.tokenizer_folder, cache, key)


def check_fork(config: TrainConfig, checkpoint: Path, steps: int) -> None:
    """The checkpoint of another run can be read and fits this model. Raises ConfigError."""
    try:
        manifest = read_manifest(checkpoint)
    except CheckpointBroken as error:
        raise ConfigError(f"--fork: {checkpoint}: {error}: take another: --fork RUN@STEP") from None
    if manifest.step >= steps:
        raise ConfigError(f"--fork: the checkpoint is of step {manifest.step}, this run has {steps}: make it longer")
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
