"""One evaluation: the model is asked what it has not answered yet, and all of it is scored."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers

from settings import ConfigError
from trainer import config
from trainer.checkpoint import CheckpointBroken
from trainer.checkpoint.format import name_of
from trainer.checkpoint.lineage import checkpoint_after
from trainer.data.encode import load_tokenizer
from trainer.data.files import find
from trainer.evaluate import generate, history, rows, scores, spoken
from trainer.evaluate.baselines import LARGEST
from trainer.evaluate.folder import Folder, called
from trainer.evaluate.rows import Row
from trainer.evaluate.weights import choose
from trainer.export import export
from trainer.model.model_config import config_of
from trainer.model.new_tokens import tokenizer_folder
from trainer.runtime import device_name
from trainer.schema import TrainConfig
from trainer.sources import Source

Say = Callable[[str], None]
_SPARE = 1.25
"""By default an answer may be so many times as long as the longest reference."""


@dataclass(frozen=True)
class Wanted:
    """What an evaluation is told."""

    data: str | None = None
    """A file; default: the run's own held-out rows."""
    step: int | None = None
    """Default: the newest checkpoint."""
    limit: int | None = None
    """The first so many rows; default: all."""
    labels: str = spoken.LABELS
    mark: str = spoken.MARK
    new_tokens: int | None = None
    """Of an answer, at most."""


class Evaluation:
    def __init__(self, run_dir: Path, wanted: Wanted) -> None:
        """Raises ConfigError, before anything is written or computed."""
        self.run_dir, self.wanted = run_dir, wanted
        if not (run_dir / "config.yaml").is_file():
            raise ConfigError(f"{run_dir}: there is no config.yaml: this is no run of the trainer")
        self.settings = config.read(run_dir / "config.yaml")
        name, source = _source(self.settings, wanted.data)
        words = [name, f"step-{wanted.step}" * (wanted.step is not None), f"first-{wanted.limit}" * bool(wanted.limit)]
        self.folder = Folder(run_dir / "evaluation" / "-".join(filter(None, words)))
        self.source, self.rows = source, rows.read(source, wanted.limit)
        references = {row.id: row.reference for row in self.rows}
        self.form = spoken.form_of(references, wanted.labels, wanted.mark)
        self.weights = choose(run_dir, wanted.step)
        tokenizer = Path(tokenizer_folder(self.settings.model, run_dir))
        self.prompts = rows.encoder(tokenizer, source.form)(self.rows)
        self._shape = config_of(self.settings.model)
        longest = _longest(self.rows, tokenizer)
        self.new_tokens = wanted.new_tokens or round(longest * _SPARE)

    @property
    def context(self) -> int:
        """Positions that the model has."""
        return int(getattr(self._shape.get_text_config(), "max_position_embeddings", None) or sys.maxsize)

    @property
    def dtype(self) -> torch.dtype:
        return generate.compute_dtype(self.settings.train.bf16_passes)

    @cached_property
    def about(self) -> dict[str, Any]:
        """What the answers depend on: others to anything else are no answers to this."""
        longest = max(map(len, self.prompts)) + self.new_tokens
        return {
            "run": self.run_dir.name,
            "step": self.weights.point.step,
            "checkpoint": self.weights.checkpoint,
            "data": {
                "file": ", ".join(Path(file).name for file in self.source.files),
                "rows": len(self.rows),
                "sha256": rows.fingerprint(self.rows),
            },
            "new_tokens": self.new_tokens,
            "batch_size": generate.batch_size(self._shape, self.dtype, longest),
            "dtype": name_of(self.dtype),
            "device": device_name(generate.device()),
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        }

    @cached_property
    def _batches(self) -> list[list[int]]:
        """Numbers of the rows that are asked; a prompt that leaves no place for an answer is not among them."""
        return generate.batches(list(map(len, self.prompts)), self.context, self.about["batch_size"], self.new_tokens)

    def run(self, say: Say) -> dict[str, Any]:
        """The scores, as scores.json has them. Raises ConfigError."""
        if (aside := self.folder.open(self.about)) is not None:
            say(f"{self.folder.path} held answers of other weights, data or settings: they lie in {aside.name} now")
        self._answer(say)
        answers = self.folder.answers()
        lines = [self._line(row, answers.get(row.id)) for row in self.rows]
        found = {
            "about": self.about,
            **scores.of(scores.Judged(lines, self.form), self._trained(say)),
            "too_long": len(lines) - sum(map(len, self._batches)),
            "losses": {name: kept._asdict() for name, kept in history.losses(self.run_dir).items()},
        }
        self.folder.close(lines, found)
        return found

    def _answer(self, say: Say) -> None:
        there = self.folder.answers()
        missing = [batch for batch in self._batches if any(self.rows[number].id not in there for number in batch)]
        if not missing:
            return
        if there:
            say(f"{len(there):,} of {len(self.rows):,} rows are answered already")
        made = self.folder.path / "model"
        writer = generate.Writer(self.weights.folder or self._exported(made, say), self.dtype, self.context)
        for answers in generate.written(writer, self.prompts, missing, self.new_tokens, say):
            self.folder.append({"id": self.rows[number].id, **answer._asdict()} for number, answer in answers.items())
        shutil.rmtree(made, ignore_errors=True)

    def _exported(self, made: Path, say: Say) -> Path:
        """An export of the checkpoint, which the next start finds. Raises ConfigError."""
        if not made.exists():  # it is there whole or not at all
            checkpoint = checkpoint_after(self.run_dir, self.weights.point.step)
            say(f"export of {checkpoint.name}")
            try:
                export(self.settings, checkpoint, made, say, by="evaluate")
            except CheckpointBroken as error:
                raise ConfigError(f"{checkpoint}: {error}: take another one: --step N") from None
        return made

    def _line(self, row: Row, answer: dict[str, Any] | None) -> scores.Line:
        given = answer or {"answer": "", "tokens": 0, "ended": False}
        asked = {"id": row.id, "prompt": row.text, "reference": row.reference, "group": row.group}
        return {**asked, **{key: given[key] for key in ("answer", "tokens", "ended")}}

    def _trained(self, say: Say) -> list[tuple[str, str]]:
        """Prompts and references of the training."""
        data = self.settings.data
        sources = [data.sources[key] for key in data.keys("train").values()]
        try:
            found = rows.thinned((source for source in sources if source.form == self.source.form), LARGEST)
        except ConfigError as error:
            say(f"no baselines from the training data: {error}")
            return []
        return rows.fullest(found)


def _source(settings: TrainConfig, file: str | None) -> tuple[str, Source]:
    """What to evaluate on, and what to call it. Raises ConfigError."""
    known = settings.data.sources
    form = "completion" if settings.result == "text" else settings.result
    if file is not None:
        like = next((one for key, one in known.items() if key.startswith("train") and one.form == form), None)
        source = Source(find([file]), like.format, like.column) if like else Source(find([file]), form)
        return called(file), source
    for name, key in settings.data.keys("evaluation").items():
        if known[key].form == form:
            return name or "evaluation", known[key]
    raise ConfigError(
        f"{settings.name} has no held-out set of prompts with answers (data.evaluation, format {form}): give a file of "
        f"them: --data test.jsonl"
    )


def _longest(questions: Sequence[Row], tokenizer: Path) -> int:
    """Tokens of the longest reference, with the one that ends it."""
    encodings = load_tokenizer(tokenizer).encode_batch_fast([row.reference for row in questions])
    return 1 + max(len(encoding.ids) for encoding in encodings)
