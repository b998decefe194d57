"""`python -m trainer.prepare RUN_DIR/config.yaml ... [--check] [--show N]`: tokenize data before runs are queued."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from settings import ConfigError, to_plain
from trainer import offline
from trainer.checkpoint import CheckpointBroken, room
from trainer.checkpoint.format import read_manifest
from trainer.config import cache_folder, differences, read
from trainer.data.display import Display, samples
from trainer.data.encode import load_tokenizer
from trainer.data.prepare import prepare_source, source_of
from trainer.data.prepared import Pool, Prepared
from trainer.exits import CONFIG
from trainer.model import new_tokens
from trainer.model.model_config import check_vocabulary, check_weights, config_of
from trainer.schema import TrainConfig
from trainer.sources import Source
from trainer.stages import Course


def main(config_path: Path, only_check: bool = False, show: int = 0) -> None:
    """Prepare every source that the run will read, and see that it is enough. Raises ConfigError."""
    config = read(config_path)
    if said := room.check(config, config_path.parent):
        print(said)
    if only_check:
        offline.forbid()
    check_weights(config.model)
    tokenizer = new_tokens.tokenizer_folder(config.model, config_path.parent)
    if config.model.path is None or config.model.new_tokens or config.model.rope:
        shape = config_of(config.model)  # a mistake in it would cost three starts of all ranks
        new_tokens.make_room(shape, config.model)
        if config.model.new_tokens:
            new_tokens.write(config.model, Path(tokenizer))
        check_vocabulary(shape.get_text_config().vocab_size, tokenizer)
    cache = cache_folder(config.data, config_path.parent)
    train = config.data.keys("train")
    held_out = config.data.keys("evaluation").values() if config.evaluation.every else ()
    sources = {f"data.{key}": source_of(config.data, key) for key in (*train.values(), *held_out)} | config.to_keep
    if only_check:
        print(*offline.check(config, tokenizer, cache, sources), sep="\n")
    prepared = {name: _prepared(config, name, one, tokenizer, cache, show) for name, one in sources.items()}
    pool = Pool({name: prepared[f"data.{key}"] for name, key in train.items()})
    course = Course(config, pool.sizes)
    for name, source in pool.sources.items():
        if name:
            print(f"source {name}: {source.sequences:,} sequences, {source.sequences * source.seq_len:,} tokens")
    print(f"data: {pool.sequences:,} sequences of {config.data.seq_len} tokens; {course.steps:,} steps")
    if config.stages is not None:
        print("\n".join(course.table()))
    if config.fork is not None:
        check_fork(config, Path(config.fork), course.steps)


def distinct(paths: Sequence[Path]) -> list[Path]:
    """One config of each kind of data: the others differ in what no data depends on."""
    first: dict[str, Path] = {}
    for path in paths:
        tree = to_plain(read(path))
        for key in ("name", "optim", "engine", "checkpoint", "fork"):
            del tree[key]
        for key in ("seed", "precision", "compile"):
            del tree["train"][key]
        own = str(path) if tree["model"]["new_tokens"] else ""  # a tokenizer of the run's own is written
        first.setdefault(json.dumps([own, tree]), path)
    return list(first.values())


def _prepared(config: TrainConfig, name: str, source: Source, tokenizer: str, cache: Path, show: int) -> Prepared:
    """One source, with its progress, its numbers and some of its samples on standard output."""
    console = Console()
    with Display(name, console) as display:
        prepared = prepare_source(name, source, config.data, tokenizer, cache, display.say, watch=display.watch)
    display.say(f"{name}: {prepared.manifest.summary}")
    if prepared.manifest.rejects:
        display.say(f"{name}: the rows that cannot be used are listed in {prepared.folder / 'rejects.jsonl'}")
    if show:
        shown = samples(prepared, load_tokenizer(Path(tokenizer)), show, marks=not console.is_terminal)
        console.print(*shown, sep="\n\n", soft_wrap=True)
    return prepared


def check_fork(config: TrainConfig, checkpoint: Path, steps: int) -> None:
    """The checkpoint of another run can be read and fits this model. Raises ConfigError."""
    try:
        manifest = read_manifest(checkpoint)
    except CheckpointBroken as error:
        raise ConfigError(f"--fork: {checkpoint}: {error}: take another: --fork RUN@STEP") from None
    if manifest.step >= steps:
        raise ConfigError(f"--fork: the checkpoint is of step {manifest.step}, this run has {steps}: make it longer")
    if manifest.config["model"].get("new_tokens") != config.model.new_tokens:
        raise ConfigError(
            "--fork: the checkpoint has other model.new_tokens: export its run, and start from that folder (model.path)"
        )
    was, now = manifest.config["model"].get("config"), config.model.config
    if config.model.path is None and was != now:
        changed = ", ".join(f"{key} {old} -> {new}" for key, old, new in differences(was or {}, now or {}))
        raise ConfigError(f"--fork: the checkpoint is of another model: model.config: {changed}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m trainer.prepare")
    parser.add_argument("config", type=Path, nargs="+")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--show", type=int, default=0)
    given = parser.parse_args()
    try:
        for path in distinct(given.config):
            main(path, given.check, given.show)
    except ConfigError as error:
        print(f"outlast: {error}", file=sys.stderr)
        sys.exit(CONFIG)
