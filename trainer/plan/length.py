"""How many steps a run has, before its data is prepared, and from where that is known. Torch-free."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from settings import ConfigError
from trainer.plan import total_steps
from trainer.schema import TrainConfig
from trainer.sources import Source

_HASHED = 256 << 20
"""Bytes of files whose prepared data is looked for: its name is the hash of all of them."""
_BYTES_A_TOKEN = 4
"""Of English text by a usual tokenizer."""


@dataclass(frozen=True)
class Length:
    steps: int
    said: str
    """Where it is from."""


def length(settings: TrainConfig, cache: Path, examples: str | None = None) -> Length | None:
    """`examples`: NxT, so many of so many tokens, in place of the data. None: nothing says it. Raises ConfigError."""
    train, stages = settings.train, settings.stages or []
    if train.steps is not None:
        return Length(train.steps, f"train.steps={train.steps:,}")
    each = train.global_batch_size * settings.data.seq_len
    if stages and all(stage.steps or stage.tokens for stage in stages):
        return Length(sum(stage.steps or max(1, int(stage.tokens or 0) // each) for stage in stages), "the stages")
    found = _examples(settings, examples) if examples else _prepared(settings, cache) or _files(settings)
    if found is None:
        return None
    sequences, said = found
    epochs = train.epochs
    if epochs is None:  # stages that count passes: of all sources as one
        steps = sum(
            stage.steps or int(sequences * stage.epochs) // train.global_batch_size
            if stage.epochs
            else int(stage.tokens or 0) // each
            for stage in stages
        )
        return Length(max(1, steps), said)
    return Length(total_steps(train, max(sequences, -(-train.global_batch_size // max(1, int(epochs))))), said)


def _examples(settings: TrainConfig, text: str) -> tuple[int, str]:
    found = re.fullmatch(r"([\d_,]+)x([\d_,]+)", text.strip())
    if found is None:
        raise ConfigError(f"--examples {text}: give examples x mean tokens, for example --examples 6800x2048")
    number, tokens = (int(re.sub(r"[_,]", "", part)) for part in found.groups())
    sequences = -(-number * tokens // settings.data.seq_len)
    return max(1, sequences), f"{number:,} examples x {tokens:,} tokens, packed"


def _prepared(settings: TrainConfig, cache: Path) -> tuple[int, str] | None:
    """What `launch.py prepare` has counted."""
    sources = _sources(settings)
    size = _size(sources)
    if size is None or size > _HASHED or not cache.is_dir():
        return None
    from trainer.data.prepare import fingerprint  # numpy: only where there is something to find

    try:
        data, tokenizer = settings.data, settings.model.tokenizer_folder
        folders = [cache / fingerprint(source, data, tokenizer, cache) for source in sources]
        counts = [json.loads((folder / "manifest.json").read_text())["sequences"] for folder in folders]
    except (OSError, ValueError, KeyError, ConfigError):
        return None
    return sum(counts), f"the prepared data: {sum(counts):,} sequences"


def _files(settings: TrainConfig) -> tuple[int, str] | None:
    size = _size(_sources(settings))
    if size is None:
        return None
    sequences = max(1, size // _BYTES_A_TOKEN // settings.data.seq_len)
    return (
        sequences,
        f"{size / 1e6:,.0f} MB of files at {_BYTES_A_TOKEN} bytes a token: an estimate until they are prepared",
    )


def _sources(settings: TrainConfig) -> list[Source]:
    """What is trained on."""
    return [settings.data.sources[key] for key in settings.data.keys("train").values()]


def _size(sources: list[Source]) -> int | None:
    """Bytes of all files; None: there are none, or one is not there."""
    paths = [Path(file) for source in sources for file in source.files]
    return sum(path.stat().st_size for path in paths) if paths and all(path.is_file() for path in paths) else None
