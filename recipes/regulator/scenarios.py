"""What the examples are about: which rules a report shall break, and how hard that is to see.

A report is drawn for a wish, and drawn again until the rules agree with the wish: so the shares of rules and of hard
cases are those that are wished for.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, timedelta
from decimal import Decimal
from random import Random
from typing import NamedTuple

from recipes.regulator import bank
from recipes.regulator.concepts import BY_KEY, EXPOSURES, MANDATORY, RATIOS, SUMS, TEMPLATES, of_template
from recipes.regulator.report import Report
from recipes.regulator.rules import LIMITS, STALE_AFTER, judge

DIFFICULTIES = {"plain": 0.38, "edge": 0.2, "units": 0.14, "combined": 0.14, "several": 0.14}
"""Shares. edge: a ratio within 0.05 points of its limit; units: templates in other units, or ratios as fractions;
combined: seen only in two templates together; several: more than one rule is broken."""
CLEAN = {"plain": 0.55, "edge": 0.5, "units": 0.5, "combined": 0.35, "several": 0.0}
"""Of each, the share that breaks no rule."""
NEAR = Decimal("0.0005")
_EDGES = tuple(LIMITS)
_CAPITAL = ("CET1", "T1", "TC")
_SINGLE = ("CET1", "T1", "TC", "LEV", "LCR", "NSFR", "SUM", "MISSING", "STALE", "BUFFER")
_RATIO_OF = {"CET1": "CET1R", "T1": "T1R", "TC": "TCR", "LEV": "LR", "LCR": "LCR", "NSFR": "NSFR"}
_TOGETHER = (("CET1",), ("T1",), ("TC",), ("BUFFER",), ("CET1", "T1"), ("T1", "TC"), ("CET1", "T1", "TC"))
_BESIDE = ("LEV", "LCR", "NSFR", "LEX", "SUM", "STALE", "MISSING")


class Wish(NamedTuple):
    difficulty: str
    broken: tuple[str, ...]
    """Codes, sorted."""
    edge: str = ""
    """The limit that one ratio is near to."""


def wish(rng: Random, short: bool) -> Wish:
    """`short`: no more rules than there is room for in the short form."""
    difficulty = rng.choices(list(DIFFICULTIES), list(DIFFICULTIES.values()))[0]
    clean = rng.random() < CLEAN[difficulty]
    match difficulty:
        case "edge":
            code = rng.choice(("LEV", "LCR", "NSFR") if clean else _EDGES)
            if clean or rng.random() < 0.75:
                return Wish(difficulty, () if clean else (code,), code)
            # Just above a minimum for own funds nothing is left for the buffers.
            return Wish(difficulty, ("BUFFER",) if code in _CAPITAL else (code,), code)
        case "combined":
            kinds: list[tuple[str, ...]] = [("LEX",), ("LEX",), ("RATIO",), (rng.choice(_EDGES), "RATIO")]
            broken = () if clean else rng.choice(kinds)
        case "several":
            broken = (*rng.choice(_TOGETHER[: 4 if short else None]), *rng.sample(_BESIDE, 1))
        case _:
            broken = () if clean else (rng.choice(_SINGLE),)
    return Wish(difficulty, tuple(sorted(broken)))


def report(rng: Random, wanted: Wish, of: bank.Institution, reference: date, short: bool) -> Report:
    """One that breaks exactly what is wished for, with no ratio near a limit unless that is the wish."""
    while True:
        made = _drawn(rng, wanted, of, reference, short)
        if tuple(judge(made)) == wanted.broken and (near(made) == {wanted.edge} - {""}):
            return made


def near(made: Report) -> set[str]:
    """Codes of the limits that a ratio is near to."""
    values = {key: value for key, value in made.values.items() if value is not None}
    return {
        code
        for code, one in LIMITS.items()
        if one.numerator in values
        and one.denominator in values
        and abs(values[one.numerator] / values[one.denominator] - one.least) <= NEAR
    }


def _drawn(rng: Random, wanted: Wish, of: bank.Institution, reference: date, short: bool) -> Report:
    values, exposures = bank.figures(rng, _target(rng, wanted, 2 if short else rng.randint(4, 9)), of)
    if short:
        values = {key: value for key, value in values.items() if not BY_KEY[key].detail}
    late = rng.randint(STALE_AFTER + 1, STALE_AFTER + 250) if "STALE" in wanted.broken else rng.randint(28, 48)
    made = Report(of.name, reference, reference + timedelta(late), {**values}, exposures, scale=of.scale)
    for code, spoil in _SPOILS.items():
        if code in wanted.broken:
            spoil(rng, made, wanted)
    if wanted.difficulty == "units":
        _other_units(rng, made, 1 if short else 2)
    return made


# --- targets --------------------------------------------------------------------------------------------


def _target(rng: Random, wanted: Wish, exposures: int) -> bank.Target:
    cet1, tier1, total = _capital(rng, wanted)
    return bank.Target(
        cet1=cet1,
        tier1=tier1,
        total=total,
        leverage=_around(rng, wanted, "LEV", 0.03, (0.018, 0.0294), (0.035, 0.09)),
        lcr=_around(rng, wanted, "LCR", 1.0, (0.6, 0.99), (1.05, 2.2)),
        nsfr=_around(rng, wanted, "NSFR", 1.0, (0.8, 0.99), (1.02, 1.45)),
        largest=_largest(rng, wanted),
        exposures=exposures,
    )


def _around(
    rng: Random, wanted: Wish, code: str, limit: float, below: tuple[float, float], above: tuple[float, float]
) -> float:
    if wanted.edge == code:
        gap = rng.uniform(0, float(NEAR))
        return limit - gap if code in wanted.broken else limit + gap
    return rng.uniform(*(below if code in wanted.broken else above))


def _capital(rng: Random, wanted: Wish) -> tuple[float, float, float]:
    """CET1, Tier 1 and total ratio: each limit can be broken alone, or with the next."""
    broken = set(wanted.broken)
    low = broken & {"CET1", "T1", "TC", "BUFFER"} or wanted.edge in _CAPITAL
    usual = rng.uniform(0.085, 0.18) if not low else rng.uniform(0.047, 0.082)
    if "T1" in broken or wanted.edge == "T1":
        usual = rng.uniform(0.047, 0.056)
    cet1 = _around(rng, wanted, "CET1", 0.045, (0.025, 0.0445), (usual, usual))
    more = max(cet1, 0.0605) + rng.uniform(0, 0.025)
    tier1 = _around(rng, wanted, "T1", 0.06, (max(cet1, 0.046) + 0.0005, 0.0594), (more, more))
    more = max(tier1, 0.0805) + rng.uniform(0, 0.035)
    total = _around(rng, wanted, "TC", 0.08, (max(tier1, 0.061) + 0.0005, 0.0794), (more, more))
    return cet1, tier1, total


def _largest(rng: Random, wanted: Wish) -> float:
    """Of a report that is hard to see, also where nothing is broken, the largest exposure is a large one."""
    if "LEX" in wanted.broken:
        return rng.uniform(0.256, 0.45)
    return rng.uniform(0.19, 0.245) if wanted.difficulty == "combined" else rng.uniform(0.05, 0.18)


# --- what is not a matter of ratios ---------------------------------------------------------------------


def _spoil_sum(rng: Random, made: Report, wanted: Wish) -> None:
    """One part is told wrong, so that the total stands."""
    total = rng.choice([total for total in SUMS if total in made.values and total in MANDATORY and total != "LB"])
    part = rng.choice(SUMS[total][1:])
    value, step = made.values[part], Decimal(1).scaleb(made.scale)
    assert value is not None
    share = Decimal(str(round(rng.uniform(0.02, 0.4), 3))) * rng.choice((-1, 1))
    made.values[part] = value + (value * share / step).to_integral_value() * step + step


def _spoil_ratio(rng: Random, made: Report, wanted: Wish) -> None:
    """A ratio is printed on the other side of its limit, or else off by some tenths of a point at least."""
    code = next((code for code in _RATIO_OF if code in wanted.broken), rng.choice(list(_RATIO_OF)))
    key, least = _RATIO_OF[code], LIMITS[code].least
    value = made.values[key]
    assert value is not None
    off = Decimal(str(round(rng.uniform(0.004, 0.02), 4))) * (10 if least == 1 else 1)
    made.values[key] = (max(value, least) + off) if value < least else value - off


def _spoil_missing(rng: Random, made: Report, wanted: Wish) -> None:
    """A template is not there, or one value is nil."""
    if rng.random() < 0.3:
        made.values[rng.choice([key for key in MANDATORY if key not in RATIOS and _may_go(key, wanted)])] = None
        return
    templates = [t for t in TEMPLATES if t != EXPOSURES and any(c.key in MANDATORY for c in of_template(t))]
    for concept in of_template(
        rng.choice([t for t in templates if all(_may_go(c.key, wanted) for c in of_template(t))])
    ):
        made.values.pop(concept.key, None)


def _may_go(key: str, wanted: Wish) -> bool:
    """Whether what is wished for can be seen without this value."""
    needed = {key for code in wanted.broken if code in LIMITS for key in LIMITS[code][:2]}
    needed |= {"T1"} if "LEX" in wanted.broken else set()
    needed |= (
        {"T1", "OF", "CET1", "AT1", "T2", "CR", "MR", "OR", "TREA"} if {"SUM", "BUFFER"} & {*wanted.broken} else set()
    )
    return key not in needed


_SPOILS: dict[str, Callable[[Random, Report, Wish], None]] = {
    "SUM": _spoil_sum,
    "RATIO": _spoil_ratio,
    "MISSING": _spoil_missing,
}


def _other_units(rng: Random, made: Report, most: int) -> None:
    """A template, or several, are in a finer unit than the report, or ratios are fractions."""
    made.percent = rng.random() < 0.5
    amounts = [
        t
        for t in TEMPLATES
        if t == EXPOSURES or any(c.kind == "amount" and c.key in made.values for c in of_template(t))
    ]
    for template in rng.sample(amounts, rng.randint(1, most) if made.percent else 1):
        made.scales[template] = made.scale - 3
    if EXPOSURES in made.scales:  # to the last digit of the finer unit; other templates have sums to keep
        step = Decimal(1).scaleb(made.scales[EXPOSURES])
        made.exposures = {name: value + rng.randint(-499, 499) * step for name, value in made.exposures.items()}
