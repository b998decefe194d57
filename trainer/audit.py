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

import msgspec
import numpy as np
import numpy.typing as npt

from settings import ConfigError
from trainer import config
from trainer.data.order import stream
from trainer.data.prepare import cache_folder, prepare
from trainer.data.prepared import Pool, Prepared, sequence_hash
from trainer.new_tokens import tokenizer_folder
from trainer.schema import TrainConfig
from trainer.stages import Course, Stretch

Hashes = npt.NDArray[np.int64]


@dataclass
class Audit:
    """The verdict, in lines for a person."""

    summary: str = ""
    notes: list[str] = field(default_factory=list)
    """What was seen and is no fault."""
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.problems

    def __str__(self) -> str:
        return "\n".join([*self.notes, *(f"WRONG: {problem}" for problem in self.problems), self.summary])


def audit(run_dir: Path) -> Audit:
    """Checks RUN_DIR/events.jsonl against the plan and the data. Raises ConfigError when that cannot be."""
    settings = config.read(run_dir / "config.yaml")
    cache = cache_folder(settings.data, run_dir)
    tokenizer = tokenizer_folder(settings.model, run_dir)
    pool = Pool(
        {
            name: prepare(settings.data, tokenizer, cache, key, say=lambda _: None)
            for name, key in settings.data.keys("train").items()
        }
    )
    out = Audit()
    every = _read_events(run_dir / "events.jsonl", out)
    begin = min((event.step for event in every if event.event == "resume"), default=0) if settings.fork else 0
    if begin:
        out.notes.append(f"steps 1-{begin} are of the run that this one was forked from")
    events = _lineage(every, out)
    if not events:
        out.problems.append("there is no finished step")
        return out
    recorded = _by_step(events, begin, out)
    if out.ok:
        planned = _planned(Course(settings, pool.sizes), pool, settings, begin + len(recorded), out)
        hashes = np.concatenate([_sequence_hashes(name, prepared) for name, prepared in pool.sources.items()])
        used = np.concatenate([ids for _, ids in planned])
        recorded = _compare(recorded, used, begin, hashes, pool, out)
        for stretch, ids in planned:
            if stretch.mixture is None:
                _check_passes(recorded[stretch.first :][: len(ids)], stretch, ids.shape[1], hashes, out)
            _count_uses(ids, stretch, pool, out)
        if settings.stages is not None:
            out.summary = (
                f"{len(used):,} steps, {used.size:,} samples in {len(planned)} of {len(settings.stages)} stages; "
                "none skipped, none twice in a pass"
            )
    if not out.ok:
        out.summary = f"problems: {len(out.problems)}: the samples were not used as planned"
    return out


# --- events ---------------------------------------------------------------------------------------------


class _Event(msgspec.Struct, frozen=True):
    """A line of events.jsonl; what else it carries is not read."""

    event: str
    epoch: int = 0
    step: int = 0
    """Of a `step`: its number from 1. Of a `resume`: the steps that were finished before."""
    hash: int = 0


def _read_events(path: Path, out: Audit) -> list[_Event]:
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}: nothing to audit") from None
    decoder = msgspec.json.Decoder(_Event)
    events = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            event = decoder.decode(line)
        except msgspec.DecodeError:
            out.notes.append(f"line {number} of {path.name} was torn by a kill: dropped")
            continue
        if event.event == "step" and event.step < 1:
            out.problems.append(f"line {number} of {path.name}: step {event.step}: steps are counted from 1")
        elif event.event in ("step", "resume"):
            events.append(event)
    return events


def _lineage(events: list[_Event], out: Audit) -> list[_Event]:
    """The steps that count: an epoch ends where a later one resumed, also if it went on as a zombie."""
    resumes = [event for event in events if event.event == "resume"]
    steps = [event for event in events if event.event == "step"]
    ends = {
        epoch: min((resume.step for resume in resumes if resume.epoch > epoch), default=sys.maxsize)
        for epoch in {event.epoch for event in steps}
    }
    for epoch, end in sorted(ends.items()):
        if cut := [event.step for event in steps if event.epoch == epoch and event.step > end]:
            out.notes.append(f"attempt {epoch}: {_ranges(cut)} dropped: a later attempt resumed before")
    return [event for event in steps if event.step <= ends[event.epoch]]


def _by_step(events: list[_Event], begin: int, out: Audit) -> Hashes:
    """The recorded hash of steps begin + 1 .. last; one that is missing or stands twice is a problem."""
    steps = np.array([event.step for event in events]) - begin
    count = np.bincount(steps)[1:]
    if missing := (np.flatnonzero(count == 0) + begin + 1).tolist():
        out.problems.append(f"{_ranges(missing)} skipped: no attempt recorded it")
    for step in (np.flatnonzero(count > 1) + begin + 1).tolist():
        epochs = ", ".join(str(event.epoch) for event in events if event.step == step)
        out.problems.append(f"step {step} was done {count[step - begin - 1]} times (attempts {epochs})")
    recorded = np.zeros(len(count), np.int64)
    recorded[steps - 1] = [event.hash for event in events]
    return recorded


def _ranges(steps: list[int]) -> str:
    """[4, 5, 6, 9] -> 'steps 4-6, 9'."""
    parts: list[list[int]] = []
    for step in sorted(set(steps)):
        if parts and step == parts[-1][-1] + 1:
            parts[-1][1:] = [step]
        else:
            parts.append([step])
    text = ", ".join("-".join(map(str, part)) for part in parts)
    return f"{'step' if text.isdigit() else 'steps'} {text}"


# --- samples --------------------------------------------------------------------------------------------


def _planned(
    course: Course, pool: Pool, settings: TrainConfig, count: int, out: Audit
) -> list[tuple[Stretch, npt.NDArray[np.int64]]]:
    """The samples of the first `count` steps by stage, each (steps, batch): numbers in the row of all sources."""
    batch, last = settings.train.global_batch_size, course.stretches[-1]
    if settings.stages is not None and count > course.steps:
        out.problems.append(f"steps {course.steps + 1}-{count} lie beyond the last stage")
    planned = []
    for stretch in course.stretches:
        known = stretch is not last or stretch.mixture is not None
        if (steps := (min(count, stretch.end) if known else count) - stretch.first) > 0:
            slots = steps * batch
            if stretch.mixture is None:
                ids = stream(0, slots, pool.sequences, settings.train.seed, stretch.number)
            else:
                ids = stretch.mixture.ids(0, slots)
            planned.append((stretch, ids.reshape(-1, batch)))
    return planned


def _sequence_hashes(name: str, prepared: Prepared) -> Hashes:
    """The hash of every sequence, (sequences,), from the index of pieces alone."""
    hashes = (sequence_hash(*prepared.documents_of(number), name) for number in range(prepared.sequences))
    return np.fromiter(hashes, np.int64, prepared.sequences)


def _compare(
    recorded: Hashes, used: npt.NDArray[np.int64], begin: int, hashes: Hashes, pool: Pool, out: Audit
) -> Hashes:
    """Each step's hash against its planned samples, `used` (begin + steps, batch). Returns those of all steps."""
    expected = hashes[used].sum(axis=1)  # int64 sums wrap, as the recorded ones did
    recorded = recorded[: len(used) - begin]
    for index in (np.flatnonzero(recorded != expected[begin:]) + begin).tolist():
        found = recorded[index - begin]
        why = _explain(found, expected, hashes[used[index]], used[index], hashes, pool)
        out.problems.append(f"step {index + 1}: other samples than planned: {why}")
    return np.concatenate([expected[:begin], recorded])


def _check_passes(recorded: Hashes, stretch: Stretch, batch_size: int, hashes: Hashes, out: Audit) -> None:
    """Where a pass ends with a step, its sum is that of all the data, whatever order the sampler says it took."""
    sequences = len(hashes)
    cycle = sequences // gcd(sequences, batch_size)
    steps = len(recorded) // cycle * cycle
    passes = steps * batch_size // sequences
    if steps and recorded[:steps].sum() != hashes.sum() * np.array([passes]):
        of = f" of stage {stretch.name}" if stretch.name else ""
        out.problems.append(f"the first {steps} steps{of} use the data {passes} times, but do not sum up to it")


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


def _count_uses(used: npt.NDArray[np.int64], stretch: Stretch, pool: Pool, out: Audit) -> None:
    """How often each sequence is used: of a mixture's sources each by itself, else of all as one."""
    uses = np.bincount(used.ravel(), minlength=pool.sequences)
    sizes = list(pool.sizes.values())
    by_source = dict(zip(pool.sizes, np.split(uses, np.cumsum(sizes)[:-1]), strict=True))
    for name, counts in (by_source if stretch.mixture is not None else {"": uses}).items():
        passes, rest = divmod(int(counts.sum()), len(counts))
        if counts.min() < passes or counts.max() > passes + (rest > 0):
            of = f" of {name}" if name else ""
            out.problems.append(f"sequences{of} were used {counts.min()} to {counts.max()} times in {passes} passes")
    if list(by_source) != [""]:
        seen = [
            f"{name} {counts.sum():,} samples, {counts.sum() * pool.seq_len:,} tokens, {counts.mean():.2f} epochs"
            for name, counts in by_source.items()
            if counts.any()
        ]
        stage = f"stage {stretch.name}, " if stretch.name else ""
        out.notes.append(f"{stage}steps {stretch.first + 1}-{stretch.first + len(used)}: {'; '.join(seen)}")
    if not stretch.name:
        out.summary = _in_passes(len(used), used.size, pool.sequences)


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
