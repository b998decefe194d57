"""The course of a run: its stages in steps. Which sequences a step takes, and its rate, are functions of the step."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

from settings import ConfigError, to_plain
from trainer.data.mixture import BLOCK, Mixture
from trainer.data.order import stream
from trainer.plan import stage_steps, total_steps
from trainer.schedule import learning_rate
from trainer.schema import Optim, Stage, TrainConfig


@dataclass(frozen=True)
class Stretch:
    """A stage where it lies in the run."""

    name: str
    """Empty in a run without stages."""
    number: int
    first: int
    """The step, from 0, that it begins with."""
    steps: int
    optim: Optim
    mixture: Mixture | None
    """None: all sources are shuffled as one."""
    weights: Mapping[str, tuple[float, float]]
    """Of the mixture: at its begin and at its end."""

    @property
    def end(self) -> int:
        return self.first + self.steps


class Course:
    """All stages of a run; a run without any is one stretch."""

    def __init__(self, settings: TrainConfig, sizes: Mapping[str, int]) -> None:
        """sizes: sequences of each source. Raises ConfigError when they are not enough."""
        self._batch, self._seed, self._sizes = settings.train.global_batch_size, settings.train.seed, sizes
        self._seq_len = settings.data.seq_len
        self._sequences = sum(sizes.values())
        self._at_once = max(1, BLOCK // self._batch)  # steps: one look-up costs what theirs together do
        self._kept = lru_cache(4)(self._shuffled)
        self.stretches: list[Stretch] = []
        if settings.stages is None:
            steps = total_steps(settings.train, self._sequences)
            self.stretches.append(Stretch("", 0, 0, steps, settings.optim, None, {}))
        for stage in settings.stages or []:
            self._append(stage, settings.optim)
        self.steps = self.stretches[-1].end

    def _append(self, stage: Stage, optim: Optim) -> None:
        number, first = len(self.stretches), self.stretches[-1].end if self.stretches else 0
        weights = stage.weights
        steps = stage_steps(stage, self._batch, self._seq_len, self._sizes)
        if steps < 1:
            raise ConfigError(
                f"stages.{stage.name} is less than one batch of train.global_batch_size={self._batch} sequences of "
                f"data.seq_len={self._seq_len}: make it longer, or the batch smaller"
            )
        mixture = None
        if weights:
            mixture = Mixture(self._sizes, weights, steps * self._batch, self._seed, number)
            seen = mixture.seen(steps * self._batch)
            for name in (name for name in weights if not seen[name]):
                raise ConfigError(
                    f"stages.{stage.name}.mixture.{name}: so small a weight gives it none of the stage's "
                    f"{steps * self._batch:,} sequences: raise it, or leave the source out"
                )
        own = replace(optim, **to_plain(stage.optim))
        self.stretches.append(Stretch(stage.name, number, first, steps, own, mixture, weights))

    def at(self, step: int) -> Stretch:
        """The stretch that a step, from 0, belongs to."""
        return self.stretches[bisect_right([stretch.first for stretch in self.stretches], step) - 1]

    def begins(self, step: int) -> Stretch | None:
        """The stage that begins with this step."""
        return next((stretch for stretch in self.stretches if stretch.name and stretch.first == step), None)

    def learning_rate(self, step: int) -> float:
        stretch = self.at(step)
        return learning_rate(step - stretch.first, stretch.steps, stretch.optim)

    def ids(self, step: int) -> npt.NDArray[np.int64]:
        """The sequences of a global batch, (global_batch_size,): numbers in the row of all sources."""
        stretch = self.at(step)
        if stretch.mixture is None:
            begin, place = divmod(step - stretch.first, self._at_once)
            return self._kept(stretch.number, begin)[place]
        return stretch.mixture.ids((step - stretch.first) * self._batch, self._batch)

    def _shuffled(self, stage: int, begin: int) -> list[npt.NDArray[np.int64]]:
        """Of the steps from `begin * _at_once` of a stage without a mixture."""
        count = self._at_once * self._batch
        return np.split(stream(begin * count, count, self._sequences, self._seed, stage), self._at_once)

    def seen(self, step: int) -> dict[str, int]:
        """Sequences of each source in all batches up to where so many steps are done."""
        total = dict.fromkeys(self._sizes, 0)
        for stretch in self.stretches:
            for name, count in self._seen(stretch, min(step, stretch.end) - stretch.first).items():
                total[name] += count
        return total

    def _seen(self, stretch: Stretch, steps: int) -> dict[str, int]:
        slots = max(0, steps) * self._batch
        if stretch.mixture is not None:
            return stretch.mixture.seen(slots)
        if len(self._sizes) == 1:
            return dict.fromkeys(self._sizes, slots)
        passes, rest = divmod(slots, self._sequences)
        ends = np.cumsum(list(self._sizes.values()))
        begun = stream(passes * self._sequences, rest, self._sequences, self._seed, stretch.number)
        counts = np.bincount(np.searchsorted(ends, begun, "right"), minlength=len(ends)).tolist()
        return {name: passes * size + count for (name, size), count in zip(self._sizes.items(), counts, strict=True)}

    def tokens(self, step: int) -> dict[str, int]:
        """Of each source with a name: the tokens of its sequences in the batches up to there."""
        return {name: count * self._seq_len for name, count in self.seen(step).items() if name}

    def told(self, step: int) -> str:
        """The same for a person; "" where no source has a name."""
        seen = [
            f"{name} {count * self._seq_len:,} tokens, {count / self._sizes[name]:.2f} epochs"
            for name, count in self.seen(step).items()
            if name
        ]
        return f"seen: {'; '.join(seen)}" * bool(seen)

    def table(self) -> Iterator[str]:
        """Each stage, and below it each of its sources: its share, tokens and passes."""
        for stretch in self.stretches:
            slots = stretch.steps * self._batch
            yield (
                f"stage {stretch.name}: steps {stretch.first + 1:,} to {stretch.end:,}, "
                f"{slots * self._seq_len:,} tokens, lr {stretch.optim.peak:g} {stretch.optim.schedule}"
            )
            for name, count in self._seen(stretch, stretch.steps).items():
                if count:
                    share, tokens = _share(stretch, name, count / slots), count * self._seq_len
                    yield f"    {name or 'data'}: {share}, {tokens:,} tokens, {count / self._sizes[name]:.2f} epochs"


def _share(stretch: Stretch, name: str, seen: float) -> str:
    """Of a stage's sequences; from its begin to its end where it changes."""
    sums = [sum(column) for column in zip(*stretch.weights.values(), strict=True)] or [0.0, 0.0]
    ends = [weight / total for weight, total in zip(stretch.weights.get(name, ()), sums, strict=False)]
    if ends and ends[0] != ends[1]:
        return f"{ends[0]:.1%} -> {ends[1]:.1%}"
    return f"{seen:.1%}"
