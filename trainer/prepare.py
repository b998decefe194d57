"""`python -m trainer.prepare RUN_DIR/config.yaml`: tokenize the run's data before it is queued."""

from __future__ import annotations

import sys
from pathlib import Path

from settings import ConfigError
from trainer.config import read
from trainer.data.prepare import cache_folder, prepare
from trainer.exits import CONFIG
from trainer.model_config import check_vocabulary, new_config
from trainer.plan import total_steps


def main(config_path: Path) -> None:
    """Prepare every split that the run will read, and see that it is enough. Raises ConfigError."""
    config = read(config_path)
    if config.model.path is None:  # a mistake in it would cost three starts of all ranks
        check_vocabulary(new_config(config.model).vocab_size, config.model.tokenizer_folder)
    cache = cache_folder(config.data, config_path.parent)
    prepared = prepare(config.data, config.model.tokenizer_folder, cache, "train")
    steps = total_steps(config.train, prepared.sequences)
    print(f"data: {prepared.sequences:,} sequences of {config.data.seq_len} tokens; {steps:,} steps")
    if config.evaluation.every:
        prepare(config.data, config.model.tokenizer_folder, cache, "evaluation")


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except ConfigError as error:
        print(f"outlast: {error}", file=sys.stderr)
        sys.exit(CONFIG)
