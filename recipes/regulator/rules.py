"""The rules, each twice: as a plain function of a report's facts, and as the formula that the taxonomy carries.

A rule whose facts are not all there says nothing: MISSING does. Limits are those of Regulation (EU) 575/2013 (CRR) and
Directive 2013/36/EU (CRD), as in force since 2021; how stale a report may be, and how far a ratio is rounded, are ours.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import NamedTuple

from recipes.regulator.concepts import DIFFERENCES, MANDATORY, RATIOS, SUMS
from recipes.regulator.report import Report

STALE_AFTER = 135
"""Days from the reference date to the filing: by then the next quarter's report was due."""
ROUNDING = Decimal("0.00006")
"""Ratios are reported with four decimals."""

Values = dict[str, Decimal]


class Limit(NamedTuple):
    """A ratio of two amounts and its least value."""

    numerator: str
    denominator: str
    least: Decimal
    article: str


LIMITS = {
    "CET1": Limit("CET1", "TREA", Decimal("0.045"), "Article 92(1)(a) CRR"),
    "T1": Limit("T1", "TREA", Decimal("0.06"), "Article 92(1)(b) CRR"),
    "TC": Limit("OF", "TREA", Decimal("0.08"), "Article 92(1)(c) CRR"),
    "LEV": Limit("T1", "EXP", Decimal("0.03"), "Article 92(1)(d) CRR"),
    "LCR": Limit("LB", "NO", Decimal(1), "Article 412(1) CRR"),
    "NSFR": Limit("ASF", "RSF", Decimal(1), "Article 428b(2) CRR"),
}
LARGEST = Decimal("0.25")
"""Of one exposure, as a share of Tier 1 capital."""
ARTICLES = {code: limit.article for code, limit in LIMITS.items()} | {
    "LEX": "Article 395(1) CRR",
    "BUFFER": "Article 141 CRD",
    "SUM": "Article 430(1) CRR",
    "RATIO": "Article 430(1) CRR",
    "MISSING": "Article 430(1) CRR",
    "STALE": "Article 430(1) CRR",
}
CODES = tuple(sorted(ARTICLES))


class Assertion(NamedTuple):
    """One check of a rule; a rule may have several."""

    code: str
    name: str
    needs: tuple[str, ...]
    """Facts without which it says nothing."""
    holds: Callable[[Values], bool]
    formula: str
    """The same in XPath: what must be true."""


def judge(report: Report) -> list[str]:
    """The codes of the rules that a report breaks, sorted."""
    there = {key: value for key, value in report.values.items() if value is not None}
    broken = {one.code for one in ASSERTIONS if all(key in there for key in one.needs) and not one.holds(there)}
    if any(key not in there for key in MANDATORY):
        broken.add("MISSING")
    if "T1" in there and any(exposure > LARGEST * there["T1"] for exposure in report.exposures.values()):
        broken.add("LEX")
    if (report.filed - report.reference).days > STALE_AFTER:
        broken.add("STALE")
    return sorted(broken)


def _limit(code: str, limit: Limit) -> Assertion:
    top, bottom, least = limit.numerator, limit.denominator, limit.least
    return Assertion(code, code, (top, bottom), lambda v: v[top] >= least * v[bottom], f"${top} ge {least} * ${bottom}")


def _ratio(ratio: str, top: str, bottom: str) -> Assertion:
    return Assertion(
        "RATIO",
        f"RATIO_{ratio}",
        (ratio, top, bottom),
        lambda v: abs(v[ratio] * v[bottom] - v[top]) <= ROUNDING * abs(v[bottom]),
        f"abs(${ratio} * ${bottom} - ${top}) le {ROUNDING} * abs(${bottom})",
    )


def _sum(total: str, parts: tuple[str, ...]) -> Assertion:
    formula = f"${total} eq {' + '.join(f'${part}' for part in parts)}"
    return Assertion("SUM", f"SUM_{total}", (total, *parts), lambda v: v[total] == sum(v[p] for p in parts), formula)


def _difference(balance: str, whole: str, part: str) -> Assertion:
    holds = lambda v: v[balance] == v[whole] - v[part]  # noqa: E731
    return Assertion("SUM", f"SUM_{balance}", (balance, whole, part), holds, f"${balance} eq ${whole} - ${part}")


_MINIMA = tuple(LIMITS[code] for code in ("CET1", "T1", "TC"))


def surplus(values: Values) -> Decimal:
    """What is left of own funds above all three minima: what may meet the buffers."""
    return min(values[one.numerator] - one.least * values[one.denominator] for one in _MINIMA)


def _buffer() -> Assertion:
    """Where a minimum is not met, that is the finding, and not the buffer above it."""
    left = ", ".join(f"${one.numerator} - {one.least} * ${one.denominator}" for one in _MINIMA)
    return Assertion(
        "BUFFER",
        "BUFFER",
        ("CET1", "T1", "OF", "TREA", "CBR"),
        lambda v: surplus(v) < 0 or surplus(v) >= v["CBR"] * v["TREA"],
        f"min(({left})) lt 0 or min(({left})) ge $CBR * $TREA",
    )


ASSERTIONS = (
    *(_limit(code, limit) for code, limit in LIMITS.items()),
    *(_ratio(ratio, *of) for ratio, of in RATIOS.items()),
    *(_sum(total, parts) for total, parts in SUMS.items()),
    *(_difference(balance, *of) for balance, of in DIFFERENCES.items()),
    _buffer(),
)
"""Those over amounts and ratios; MISSING, LEX and STALE are of other kinds, and stand in the taxonomy by themselves."""
