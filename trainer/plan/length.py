"""How many steps a run has, before its data is prepared, and from where that is known. Torch-free."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from settings import ConfigError
from trainer.plan import stage_steps, total_steps
from trainer.schema import TrainConfig
from trainer.sources import Source

Found = tuple[dict[str, int], str]
"""Sequences of each source by its name, and where that is from."""
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
    batch, seq_len = train.global_batch_size, settings.data.seq_len
    if stages and all(stage.steps or stage.tokens for stage in stages):
        found: Found | None = ({}, "the stages")
    else:
        found = _examples(settings, examples) if examples else _prepared(settings, cache) or _files(settings)
    if found is None:
        return None
    sizes, said = found
    epochs = train.epochs
    if epochs is None:
        return Length(sum(max(1, stage_steps(stage, batch, seq_len, sizes)) for stage in stages), said)
    return Length(total_steps(train, max(sum(sizes.values()), math.ceil(batch / epochs))), said)


def _examples(settings: TrainConfig, text: str) -> Found:
    found = re.fullmatch(r"([\d_,]+)x([\d_,]+)", text.strip())
    if found is None:
        raise ConfigError(f"--examples {text}: give examples x mean tokens, for example --examples 6800x2048")
    number, tokens = (int(re.sub(r"[_,]", "", part)) for part in found.groups())
    sequences = -(-number * tokens // settings.data.seq_len)
    return {"": max(1, sequences)}, f"{number:,} examples x {tokens:,} tokens, packed"


def _prepared(settings: TrainConfig, cache: Path) -> Found | None:
    """What `launch.py prepare` has counted."""
    sources = _sources(settings)
    sizes = _sizes(sources)
    if sizes is None or sum(sizes.values()) > _HASHED or not cache.is_dir():
        return None
    from trainer.data.prepare import fingerprint  # numpy: only where there is something to find

    try:
        data, tokenizer = settings.data, settings.model.tokenizer_folder
        folders = {name: cache / fingerprint(one, data, tokenizer, cache) for name, one in sources.items()}
        counts = {name: json.loads((one / "manifest.json").read_text())["sequences"] for name, one in folders.items()}
    except (OSError, ValueError, KeyError, ConfigError):
        return None
    return counts, f"the prepared data: {sum(counts.values()):,} sequences"


def _files(settings: TrainConfig) -> Found | None:
    sizes = _sizes(_sources(settings))
    if sizes is None:
        return None
    sequences = {name: max(1, size // _BYTES_A_TOKEN // settings.data.seq_len) for name, size in sizes.items()}
    size = sum(sizes.values()) / 1e6
    return sequences, f"{size:,.0f} MB of files at {_BYTES_A_TOKEN} bytes a token: an estimate until they are prepared"


def _sources(settings: TrainConfig) -> dict[str, Source]:
    """What is trained on, by name."""
    return {name: settings.data.sources[key] for name, key in settings.data.keys("train").items()}


def _sizes(sources: Mapping[str, Source]) -> dict[str, int] | None:
    """Bytes of each one's files; None: there are none, or one is not there."""
    paths = {name: [Path(file) for file in source.files] for name, source in sources.items()}
    every = [path for files in paths.values() for path in files]
    if not every or not all(path.is_file() for path in every):
        return None
    return {name: sum(path.stat().st_size for path in files) for name, files in paths.items()}
