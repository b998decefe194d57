"""events.jsonl of a whole run, read as a stream: the steps as columns, what else was told as it stands. Torch-free.

A line that a kill tore is dropped, and said. An attempt counts up to the step at which a later one resumed, also if it
went on as a zombie.
"""

from __future__ import annotations

import sys
from array import array
from dataclasses import dataclass, field
from math import nan
from operator import attrgetter
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np
import numpy.typing as npt

from settings import ConfigError
from trainer.records.events import NAME, line_hash

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

WHOLE = ("step", "epoch", "hash")
NUMBERS = (
    *("time", "loss", "lr", "grad_norm", "tokens", "seconds", "data_wait_seconds", "tokens_per_second"),
    *("memory_bytes", "mfu"),
)
_BY_ANY_RANK = {"oom", "hang"}
"""Told beside rank 0, in the same epoch."""
_BACK = 64  # lines that a look for another writer's goes back
_BLOCK = 1 << 20  # bytes that are read together


class _Line(msgspec.Struct, frozen=True, gc=False):
    """A line of events.jsonl; a step's numbers."""

    event: str
    epoch: int = 0
    step: int = 0
    """Of a `step`: its number from 1. Of a `resume`: the steps that were finished before."""
    hash: int = 0
    time: float | None = nan
    loss: float | None = nan
    lr: float | None = nan
    grad_norm: float | None = nan
    tokens: float | None = nan
    seconds: float | None = nan
    data_wait_seconds: float | None = nan
    tokens_per_second: float | None = nan
    memory_bytes: float | None = nan
    mfu: float | None = nan
    chain: str | None = None


_DECODER = msgspec.json.Decoder(_Line)
_COLUMNS = (*WHOLE, *NUMBERS)
_values = attrgetter(*_COLUMNS)


@dataclass
class History:
    """What a run told. The steps' columns have an element for each `step` line, in the file's order; a number that was
    not told is nan."""

    columns: dict[str, Any] = field(default_factory=dict)
    others: list[dict[str, Any]] = field(default_factory=list)
    """Every event that is no step."""
    torn: list[int] = field(default_factory=list)
    """Lines that a kill tore, from 1."""
    problems: list[str] = field(default_factory=list)
    """Lines that cannot be as the trainer wrote them."""
    lines: int = 0
    """That could be read."""
    chained: bool = False
    """They carry the hash of the one before."""
    last_hash: str = ""
    """Of the last line."""

    def __post_init__(self) -> None:
        self.columns = {key: array("q") for key in WHOLE} | {key: array("d") for key in NUMBERS}

    @property
    def count(self) -> int:
        """Of `step` lines."""
        return len(self.columns["step"])

    def whole(self, key: str) -> Ints:
        """step, epoch or hash: (steps,)."""
        return np.frombuffer(self.columns[key], np.int64)

    def numbers(self, key: str) -> Floats:
        """(steps,)."""
        return np.frombuffer(self.columns[key], np.float64)

    def told(self, *kinds: str) -> list[dict[str, Any]]:
        return [event for event in self.others if event["event"] in kinds]

    def ends(self) -> dict[int, int]:
        """The step after which an epoch counts no more."""
        resumes = [(int(event["epoch"]), int(event["step"])) for event in self.told("resume")]
        epochs = np.unique(self.whole("epoch")).tolist()
        return {epoch: min((step for later, step in resumes if later > epoch), default=sys.maxsize) for epoch in epochs}

    def in_line(self, *kinds: str) -> list[dict[str, Any]]:
        """Those of a line that was not given up."""
        ends = self.ends()
        return [event for event in self.told(*kinds) if event["step"] <= ends.get(event["epoch"], event["step"])]

    def kept(self) -> Mask:
        """Which steps count, (steps,)."""
        epoch, step, kept = self.whole("epoch"), self.whole("step"), np.ones(self.count, bool)
        for number, end in self.ends().items():
            kept &= (epoch != number) | (step <= end)
        return kept


def read(run_dir: Path) -> History:
    """Raises ConfigError when there is no such file."""
    path = run_dir / NAME
    try:
        file = path.open("rb")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    with file:
        return _read(file)


def _read(file: IO[bytes]) -> History:
    out, chain, number, rest = History(), _Chain(), 0, b""
    while block := file.read(_BLOCK):  # a block at a time, column by column: a run has millions of lines
        *lines, rest = (rest + block).split(b"\n")
        number += _take(out, chain, lines, number)
    _take(out, chain, [rest] * bool(rest), number)
    out.last_hash, out.chained = chain.head, chain.begun
    return out


def _take(out: History, chain: _Chain, lines: list[bytes], first: int) -> int:
    """The next lines; `first`: how many there were before. Returns how many these are."""
    told = _decoded(lines)
    for wrong, at in chain.follow(lines, told):
        out.problems.append(f"line {first + at + 1} of {NAME}: {wrong}")
    steps = []
    for at, event in enumerate(told):
        if event is None:
            out.torn += [first + at + 1] * bool(lines[at].strip())
        elif event.event != "step":
            out.others.append(msgspec.json.decode(lines[at]))
        elif event.step < 1:
            out.problems.append(f"line {first + at + 1} of {NAME}: step {event.step}: steps are counted from 1")
        else:
            steps.append(event)
    out.lines += sum(event is not None for event in told)
    for key, values in zip(_COLUMNS, zip(*map(_values, steps), strict=True), strict=False):
        column = out.columns[key]
        try:
            column.extend(array(column.typecode, values))
        except TypeError:  # of JSON's null, for what is not finite
            column.extend([nan if value is None else value for value in values])
    return len(lines)


def _decoded(lines: list[bytes]) -> list[_Line | None]:
    """None: it is torn."""
    try:
        found: list[_Line | None] = [*_DECODER.decode_lines(b"\n".join(lines))]
    except msgspec.DecodeError:
        found = []
    return found if len(found) == len(lines) else [_decoded_line(line) for line in lines]


def _decoded_line(line: bytes) -> _Line | None:
    try:
        return _DECODER.decode(line)
    except msgspec.DecodeError:
        return None


class _Chain:
    """Each line carries the hash of the one that its writer saw before it: as a rule the one that stands there."""

    def __init__(self) -> None:
        self.head = line_hash(b"")
        self.begun = False
        self._before: list[tuple[str, _Line | None]] = []  # what a line would carry that came next to it, and that line

    def follow(self, lines: list[bytes], told: list[_Line | None]) -> list[tuple[str, int]]:
        """What is wrong with the next lines, and with which."""
        heads = [self.head, *map(line_hash, lines)]
        wrong = []
        if [event and event.chain for event in told] != heads[:-1]:
            wrong = [(why, at) for at in range(len(lines)) if (why := self._broken(at, heads, told))]
        elif lines:  # as a rule
            self.begun = True
        self._before = [*self._before, *zip(heads, told, strict=False)][-_BACK:]
        self.head = heads[-1]
        return wrong

    def _broken(self, at: int, heads: list[str], told: list[_Line | None]) -> str | None:
        event = told[at]
        if event is None:
            return None
        if event.chain is None:
            return "it carries no hash, as those before it do" if self.begun else None
        self.begun = True
        if event.chain == heads[at]:
            return None
        earlier = [*self._before, *zip(heads[max(0, at - _BACK) : at], told[max(0, at - _BACK) : at], strict=True)]
        for before, other in reversed(earlier):
            # Another process may write at the same time: a zombie, or a rank beside rank 0. Its own it would have seen.
            beside = other is None or other.epoch != event.epoch or {other.event, event.event} & _BY_ANY_RANK
            if not beside:
                break
            if before == event.chain:
                return None
        return "it does not follow the line before it: one was changed, taken out or put in there"
