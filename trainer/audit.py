"""Proof that a run used each sample as planned: none skipped, none twice.

    python -m trainer.audit RUN_DIR

The training loop writes to events.jsonl, per step, the sum of the hashes of the sequences that reached the
loss. Here the hash of every sequence is computed anew from the prepared data, and both are compared.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from math import gcd
from pathlib import Path

import numpy as np
import numpy.typing as npt

from settings import ConfigError
from trainer import config
from trainer.data.order import stream
from trainer.data.prepare import fingerprint, prepare, source_of
from trainer.data.prepared import Pool, Prepared, sequence_hash
from trainer.model.new_tokens import tokenizer_folder
from trainer.records.events import NAME
from trainer.records.history import History, Mask, read
from trainer.schema import TrainConfig
from trainer.stages import Course, Stretch

Hashes = npt.NDArray[np.int64]
_AT_ONCE = 1 << 20  # samples that are enumerated together


@dataclass
class Audit:
    """The verdict, in lines for a person."""

    summary: str = ""
    notes: list[str] = field(default_factory=list)
    """What was seen and is no fault."""
    lines: list[str] = field(default_factory=list)
    """Problems of what was written: lines that were changed."""
    steps: list[str] = field(default_factory=list)
    """Steps that are missing, or stand twice."""
    samples: list[str] = field(default_factory=list)
    """Steps that used others than planned."""

    @property
    def problems(self) -> list[str]:
        return self.lines + self.steps + self.samples

    @property
    def ok(self) -> bool:
        return not self.problems

    def __str__(self) -> str:
        return "\n".join([*self.notes, *(f"WRONG: {problem}" for problem in self.problems), self.summary])


def audit(run_dir: Path, told: History | None = None, make: bool = True) -> Audit:
    """Checks RUN_DIR/events.jsonl against the plan and the data. `told`: the events, where they were read already;
    `make`: data that is not prepared any more is prepared anew. Raises ConfigError when that cannot be."""
    settings = config.read(run_dir / "config.yaml")
    pool = _pool(settings, run_dir, make)
    out = Audit()
    history = told if told is not None else _read_events(run_dir)
    out.notes += [f"line {number} of {NAME} was torn by a kill: dropped" for number in history.torn]
    out.lines += history.problems
    resumed = [int(event["step"]) for event in history.told("resume")]
    begin = min(resumed, default=0) if settings.fork else 0
    if begin:
        out.notes.append(f"steps 1-{begin} are of the run that this one was forked from")
    kept = _lineage(history, out)
    if not kept.any():
        out.steps.append("there is no finished step")
        return out
    recorded = _by_step(history, kept, begin, out)
    if not out.steps:
        _check_samples(recorded, begin, settings, pool, out)
    if not out.ok:
        out.summary = f"problems: {len(out.problems)}: the samples were not used as planned"
    return out


def _pool(settings: TrainConfig, run_dir: Path, make: bool) -> Pool:
    cache, tokenizer = config.cache_folder(settings.data, run_dir), tokenizer_folder(settings.model, run_dir)
    for key in () if make else settings.data.keys("train").values():
        source = source_of(settings.data, key)
        if not (cache / fingerprint(source, settings.data.cut_for(source), tokenizer, cache)).is_dir():
            raise ConfigError(f"data.{key} is not prepared any more: python -m trainer.audit {run_dir} does it anew")
    about = settings.data, tokenizer, cache
    return Pool({name: prepare(*about, key, say=lambda _: None) for name, key in settings.data.keys("train").items()})


# --- events ---------------------------------------------------------------------------------------------


def _read_events(run_dir: Path) -> History:
    try:
        return read(run_dir)
    except ConfigError as error:
        raise ConfigError(f"{error}: nothing to audit") from None


def _lineage(history: History, out: Audit) -> Mask:
    """The steps that count."""
    kept, epochs, steps = history.kept(), history.whole("epoch"), history.whole("step")
    for epoch in np.unique(epochs[~kept]).tolist():
        cut = np.unique(steps[~kept & (epochs == epoch)])
        out.notes.append(f"attempt {epoch}: {_ranges(cut)} dropped: a later attempt resumed before")
    return kept


def _by_step(history: History, kept: Mask, begin: int, out: Audit) -> Hashes:
    """The recorded hash of steps begin + 1 .. last; one that is missing or stands twice is a problem."""
    steps, epochs = history.whole("step")[kept], history.whole("epoch")[kept]
    done, first, count = np.unique(steps, return_index=True, return_counts=True)
    before = np.concatenate([[begin], done[:-1]])
    if missing := [(low + 1, high - 1) for low, high in zip(before, done, strict=True) if high > low + 1]:
        out.steps.append(f"{_in_words(missing)} skipped: no attempt recorded it")
    for step, times in zip(done[count > 1].tolist(), count[count > 1].tolist(), strict=True):
        attempts = ", ".join(map(str, epochs[steps == step].tolist()))
        out.steps.append(f"step {step} was done {times} times (attempts {attempts})")
    return history.whole("hash")[kept][first]


def _ranges(steps: Hashes) -> str:
    """[4, 5, 6, 9] -> 'steps 4-6, 9'. In order, none twice."""
    breaks = np.flatnonzero(np.diff(steps) > 1)
    return _in_words(list(zip(steps[[0, *(breaks + 1)]].tolist(), steps[[*breaks, -1]].tolist(), strict=True)))


def _in_words(ranges: list[tuple[int, int]]) -> str:
    text = ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in ranges)
    return f"{'step' if text.isdigit() else 'steps'} {text}"


# --- samples --------------------------------------------------------------------------------------------


def _check_samples(recorded: Hashes, begin: int, settings: TrainConfig, pool: Pool, out: Audit) -> None:
    """The hash of each step against that of its planned samples, and how often each sample is used."""
    batch, count = settings.train.global_batch_size, begin + len(recorded)
    course = Course(settings, pool.sizes)
    stretches = _stretches(course, settings, count, out)
    count = sum(steps for _, steps in stretches)
    plan = Plan(settings, pool, stretches)
    hashes = np.concatenate([_sequence_hashes(name, prepared) for name, prepared in pool.sources.items()])
    expected, uses = plan.enumerated(hashes)
    recorded = recorded[: count - begin]
    for index in (np.flatnonzero(recorded != expected[begin:]) + begin).tolist():
        ids, found = plan.ids(index), recorded[index - begin]
        why = _explain(found, expected, hashes[ids], ids, hashes, pool)
        out.samples.append(f"step {index + 1}: other samples than planned: {why}")
    recorded = np.concatenate([expected[:begin], recorded])
    for (stretch, steps), used in zip(stretches, uses, strict=True):
        if stretch.mixture is None:
            _check_passes(recorded[stretch.first :][:steps], stretch, batch, hashes, out)
        _count_uses(used, steps, stretch, pool, out)
    if settings.stages is not None:
        out.summary = (
            f"{count:,} steps, {count * batch:,} samples in {len(stretches)} of {len(settings.stages)} stages; "
            "none skipped, none twice in a pass"
        )


def _stretches(course: Course, settings: TrainConfig, count: int, out: Audit) -> list[tuple[Stretch, int]]:
    """The stages of the first `count` steps, each with how many of them it has."""
    last, found = course.stretches[-1], []
    if settings.stages is not None and count > course.steps:
        out.samples.append(f"steps {course.steps + 1}-{count} lie beyond the last stage")
    for stretch in course.stretches:
        known = stretch is not last or stretch.mixture is not None
        if (steps := (min(count, stretch.end) if known else count) - stretch.first) > 0:
            found.append((stretch, steps))
    return found


@dataclass(frozen=True)
class Plan:
    """The samples of the steps of a run's stages, as numbers in the row of all sources."""

    settings: TrainConfig
    pool: Pool
    stretches: list[tuple[Stretch, int]]

    def enumerated(self, hashes: Hashes) -> tuple[Hashes, list[Hashes]]:
        """The sum of the hashes of each step's samples, (steps,), and of each stage the uses of each sequence,
        (sequences,). A piece at a time, since a long run has more samples than a login node has memory for."""
        batch, expected, uses = self.settings.train.global_batch_size, [], []
        for stretch, steps in self.stretches:
            used, piece = np.zeros(self.pool.sequences, np.int64), max(1, _AT_ONCE // batch)
            for first in range(0, steps, piece):
                ids = self._slots(stretch, first * batch, min(piece, steps - first) * batch)
                expected.append(hashes[ids].reshape(-1, batch).sum(axis=1))  # int64 sums wrap, as the recorded ones did
                used += np.bincount(ids, minlength=len(used))
            uses.append(used)
        return np.concatenate(expected), uses

    def ids(self, step: int) -> Hashes:
        """The samples of a step, from 0: (batch,)."""
        stretch = next(one for one, steps in self.stretches if step < one.first + steps)
        batch = self.settings.train.global_batch_size
        return self._slots(stretch, (step - stretch.first) * batch, batch)

    def _slots(self, stretch: Stretch, first: int, count: int) -> Hashes:
        if stretch.mixture is None:
            return stream(first, count, self.pool.sequences, self.settings.train.seed, stretch.number)
        return stretch.mixture.ids(first, count)


def _sequence_hashes(name: str, prepared: Prepared) -> Hashes:
    """The hash of every sequence, (sequences,), from the index of pieces alone."""
    hashes = (sequence_hash(*prepared.documents_of(number), name) for number in range(prepared.sequences))
    return np.fromiter(hashes, np.int64, prepared.sequences)


def _check_passes(recorded: Hashes, stretch: Stretch, batch_size: int, hashes: Hashes, out: Audit) -> None:
    """Where a pass ends with a step, its sum is that of all the data, whatever order the sampler says it took."""
    sequences = len(hashes)
    cycle = sequences // gcd(sequences, batch_size)
    steps = len(recorded) // cycle * cycle
    passes = steps * batch_size // sequences
    if steps and recorded[:steps].sum() != hashes.sum() * np.array([passes]):
        of = f" of stage {stretch.name}" if stretch.name else ""
        out.samples.append(f"the first {steps} steps{of} use the data {passes} times, but do not sum up to it")


def _explain(
    found: np.int64, expected: Hashes, batch: Hashes, ids: npt.NDArray[np.int64], hashes: Hashes, pool: Pool
) -> str:
    """What a wrong hash says: another step's batch, or one sample in place of another."""
    if (other := np.flatnonzero(expected == found)).size:
        return f"it used the samples of step {other[0] + 1}"
    # found = expected - planned + replacement, for the one sample that was replaced.
    replacements = batch + (found - batch.sum(keepdims=True))
    hits = np.flatnonzero(np.isin(replacements, hashes))
    if hits.size == 1:
        instead, planned = pool.places(np.array([np.flatnonzero(hashes == replacements[hits[0]])[0], ids[hits[0]]]))
        return f"sequence {instead} stood in place of sequence {planned}"
    return f"hash {found}, planned {batch.sum()}"


def _count_uses(uses: Hashes, steps: int, stretch: Stretch, pool: Pool, out: Audit) -> None:
    """How often each sequence is used: of a mixture's sources each by itself, else of all as one."""
    sizes = list(pool.sizes.values())
    by_source = dict(zip(pool.sizes, np.split(uses, np.cumsum(sizes)[:-1]), strict=True))
    for name, counts in (by_source if stretch.mixture is not None else {"": uses}).items():
        passes, rest = divmod(int(counts.sum()), len(counts))
        if counts.min() < passes or counts.max() > passes + (rest > 0):
            of = f" of {name}" if name else ""
            out.samples.append(f"sequences{of} were used {counts.min()} to {counts.max()} times in {passes} passes")
    if list(by_source) != [""]:
        seen = [
            f"{name} {counts.sum():,} samples, {counts.sum() * pool.seq_len:,} tokens, {counts.mean():.2f} epochs"
            for name, counts in by_source.items()
            if counts.any()
        ]
        stage = f"stage {stretch.name}, " if stretch.name else ""
        out.notes.append(f"{stage}steps {stretch.first + 1}-{stretch.first + steps}: {'; '.join(seen)}")
    if not stretch.name:
        out.summary = _in_passes(steps, int(uses.sum()), pool.sequences)


def _in_passes(steps: int, samples: int, sequences: int) -> str:
    passes, rest = divmod(samples, sequences)
    done = f"{steps:,} steps, {samples:,} samples"
    if passes == 0:
        return (
            f"{done}: each used once ({rest:,} of {sequences:,} sequences, {sequences - rest:,} left for a "
            "next pass); none skipped, none twice"
        )
    whole = "1 whole pass" if passes == 1 else f"{passes} whole passes"
    partial = f", and {rest:,} of them in pass {passes + 1}" if rest else ""
    return f"{done}: {whole} with each of {sequences:,} sequences once{partial}; none skipped, none twice in a pass"


def main(arguments: list[str]) -> int:
    """0: as planned; 1: not; 78: it cannot be checked."""
    if len(arguments) != 1:
        print("usage: python -m trainer.audit RUN_DIR")
        return 78
    try:
        verdict = audit(Path(arguments[0]))
    except ConfigError as error:
        print(error)
        return 78
    print(verdict)
    return 0 if verdict.ok else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
