"""What is forgotten and what is learnt: arithmetic over held-out losses, in nats a token.

Rise: how much the general loss is higher after the last step than before the first one. Gain: how much the domain loss
is lower. Both stand beside those of `none` of the same seed, which is plain full fine-tuning.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from benchmarks.rows import Row
from docs import markdown

NONE, BOTH = "none", "replay + EWC"
MOST_RISE, LEAST_GAIN = 1 / 3, 0.95  # of none's
GOALS = ("at most a third of none's", f"at least {LEAST_GAIN:.0%} of none's")


@dataclass(frozen=True)
class Course:
    """Held-out losses of one run on the domain, and what it took."""

    steps: list[int]
    general: list[float]
    domain: list[float]
    seen: dict[str, int]
    """Tokens of each source."""
    step_seconds: float
    """Median."""

    @property
    def rise(self) -> float:
        return self.general[-1] - self.general[0]

    @property
    def gain(self) -> float:
        return self.domain[0] - self.domain[-1]

    def rise_of(self, none: Course) -> float:
        """As a share of its."""
        return self.rise / none.rise

    def gain_of(self, none: Course) -> float:
        return self.gain / none.gain

    def perplexity_of(self, none: Course) -> float:
        """Domain perplexity over its."""
        return math.exp(self.domain[-1] - none.domain[-1])


def best(tried: Mapping[Any, Course], none: Course) -> Any:
    """The setting that forgets least of those that keep the gain; of the others the one that gains most."""
    keeps = [one for one in tried if tried[one].gain_of(none) >= LEAST_GAIN]
    if keeps:
        return min(keeps, key=lambda one: tried[one].rise)
    return max(tried, key=lambda one: tried[one].gain)


@dataclass(frozen=True)
class Spread:
    """Of one figure over the seeds."""

    mean: float
    deviation: float
    """Of a sample."""

    @classmethod
    def of(cls, figures: Sequence[float]) -> Spread:
        return cls(mean(figures), stdev(figures) if len(figures) > 1 else 0.0)

    def words(self, form: str) -> str:
        return f"{self.mean:{form}} ± {self.deviation:{form}}"


@dataclass(frozen=True)
class Result:
    """An arm over all seeds."""

    arm: str
    rise: Spread
    gain: Spread
    rise_of: Spread
    gain_of: Spread
    perplexity_of: Spread
    seen: dict[str, int]

    @property
    def meets(self) -> tuple[bool, bool]:
        return self.rise_of.mean <= MOST_RISE, self.gain_of.mean >= LEAST_GAIN


def results(record: Mapping[str, Any]) -> list[Result]:
    runs = {arm: [Course(**one) for one in courses] for arm, courses in record["runs"].items()}
    return [_result(arm, courses, runs[NONE]) for arm, courses in runs.items()]


def _result(arm: str, courses: Sequence[Course], plain: Sequence[Course]) -> Result:
    pairs = list(zip(courses, plain, strict=True))
    return Result(
        arm,
        Spread.of([one.rise for one in courses]),
        Spread.of([one.gain for one in courses]),
        Spread.of([one.rise_of(none) for one, none in pairs]),
        Spread.of([one.gain_of(none) for one, none in pairs]),
        Spread.of([one.perplexity_of(none) for one, none in pairs]),
        courses[0].seen,
    )


# --- tables ---------------------------------------------------------------------------------------------------

HEAD = ("", "setting", "rise, general", "of none's", "gain, domain", "of none's", "domain perplexity", "goal")


def table(record: Mapping[str, Any]) -> str:
    """Markdown: mean ± standard deviation over the seeds."""
    lines = []
    for one in results(record):
        met = "" if one.arm == NONE else "met" if all(one.meets) else "missed"
        figures = (one.rise.words(".3f"), one.rise_of.words(".0%"), one.gain.words(".3f"), one.gain_of.words(".1%"))
        lines.append((one.arm, record["chosen"][one.arm], *figures, one.perplexity_of.words(".3f"), met))
    return markdown.table(HEAD, lines)


def tried(record: Mapping[str, Any]) -> str:
    """Markdown: every setting that was tried to choose one, as shares of none's."""
    lines = []
    none = _plain(record)
    for arm, settings in record["tried"].items():
        for words, one in settings.items():
            course = Course(**one)
            figures = (f"{course.rise_of(none):.0%}", f"{course.gain_of(none):.1%}")
            lines.append((arm, words, *figures, "chosen" if words == record["chosen"][arm] else ""))
    return markdown.table(("", "setting", "rise of none's", "gain of none's", ""), lines)


def rows(record: Mapping[str, Any]) -> Iterator[Row]:
    """For the dated results."""
    found = results(record)
    plain = next(one for one in found if one.arm == NONE)
    for one in found:
        names = (f"{one.arm} ({record['chosen'][one.arm]}): rise, general", f"{one.arm}: gain, domain")
        if one.arm == NONE:
            yield Row(names[0], "nats", one.rise.mean)
            yield Row(names[1], "nats", one.gain.mean)
            continue
        why = cause(record, one.arm)
        about = zip(names, (one.rise, one.gain), (plain.rise, plain.gain), GOALS, one.meets, strict=True)
        for name, ours, theirs, goal, met in about:
            yield Row(name, "nats", ours.mean, NONE, theirs.mean, goal=goal, met=met, cause=why)
    for name, seconds in record["step_seconds"].items():
        plain_seconds = record["step_seconds"][NONE]
        yield Row(f"a step, {name}", "ms", 1000 * seconds, NONE, 1000 * plain_seconds, ratio=plain_seconds / seconds)


def cause(record: Mapping[str, Any], arm: str) -> str:
    """What the settings that were tried say of a goal that is missed."""
    none = _plain(record)
    courses = {words: Course(**one) for words, one in record["tried"][arm].items()}
    points = {words: (one.rise_of(none), one.gain_of(none)) for words, one in courses.items()}
    keep = min((point for point in points.values() if point[1] >= LEAST_GAIN), default=None)
    hold = max((point for point in points.values() if point[0] <= MOST_RISE), key=lambda p: p[1], default=None)
    words = [f"measured, seed {record['about']['choosing_seed']}: of {len(points)} settings"]
    words.append(
        f"those that keep the gain rise by {keep[0]:.0%} of none's at least" if keep else "not one keeps the gain"
    )
    words.append(f"those that hold the rise gain {hold[1]:.1%} at most" if hold else "not one holds the rise")
    return f"{words[0]} {words[1]}, {words[2]}"


def _plain(record: Mapping[str, Any]) -> Course:
    """Of the choosing seed."""
    return Course(**record["tried"][NONE][record["chosen"][NONE]])
