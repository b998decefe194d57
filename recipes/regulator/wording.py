"""What is to be written about a report: the rules that it breaks, why, and the directive; in varied wording.

The directive names the article, the figures, the measure and the deadline of each finding. Measures and deadlines are
ours; CRD Article 142 knows the five working days.
"""

from __future__ import annotations

import json
from decimal import Decimal
from random import Random

from recipes.regulator.concepts import BY_KEY, DIFFERENCES, EXPOSURES, MANDATORY, RATIOS, SUMS, of_template
from recipes.regulator.report import Report
from recipes.regulator.rules import ARTICLES, LARGEST, LIMITS, ROUNDING, STALE_AFTER
from recipes.regulator.text import UNITS

NAMES = {"CET1": "CET1", "T1": "Tier 1", "TC": "total capital", "LEV": "leverage", "LCR": "LCR", "NSFR": "NSFR"}
_FRAMES = (
    "Under {article}, {measure} within {days} days.",
    "Within {days} days {measure} ({article}).",
    "{article} obliges you to {measure} within {days} days.",
    "You shall {measure} within {days} days under {article}.",
)
_AFTERWARDS = (
    "Report to us in writing what was done, with the figures as they then are.",
    "Send a plan with dates and amounts to your supervisor, who will follow each step of it.",
    "The board confirms in writing that the measures stand, and names who answers for them.",
    "Until then, every further change of these figures is to be notified on the day it is known.",
)
_CLEAN = (
    "Nothing is broken: CET1 {CET1R}, LCR {LCR}.",
    "No finding. CET1 {CET1R}, leverage {LR}.",
    "All rules are kept; T1 {T1R}, NSFR {NSFR}.",
    "Every limit is met: TC {TCR}, LCR {LCR}.",
)


def completion(rng: Random, report: Report, broken: list[str], short: bool) -> str:
    """First the rules as JSON, then the analysis, then the directive."""
    first = json.dumps({"violations": broken})
    if not broken:
        return f"{first}\n{rng.choice(_CLEAN).format_map(_percents(report))}\n\nDirective: none."
    order = rng.sample(broken, len(broken)) if not short else broken
    findings = [_finding(rng, report, code) for code in order]
    orders = [_order(rng, report, code, short) for code in order]
    if not short:
        orders += rng.sample(_AFTERWARDS, rng.choice((1, 2)))
    return f"{first}\n{' '.join(findings)}\n\nDirective: {' '.join(orders)}"


def percent(ratio: Decimal) -> str:
    return f"{ratio * 100:.2f}%"


def below(ratio: Decimal, limit: Decimal) -> str:
    """In so many decimals that it can be seen to be less than its limit."""
    digits = 2
    while digits < 6 and f"{ratio * 100:.{digits}f}" == f"{limit * 100:.{digits}f}":
        digits += 1
    return f"{ratio * 100:.{digits}f}%"


def _percents(report: Report) -> dict[str, str]:
    return {key: percent(report.values[key] or Decimal(0)) for key in RATIOS}


def _amount(report: Report, key: str) -> str:
    value = report.values[key]
    assert value is not None
    return f"{value.scaleb(-report.scale_of(BY_KEY[key].template)):f}"


def _actual(report: Report, code: str) -> Decimal:
    top, bottom = (report.values[key] for key in LIMITS[code][:2])
    assert top is not None and bottom is not None
    return top / bottom


def _finding(rng: Random, report: Report, code: str) -> str:
    """A sentence of the analysis."""
    if code in LIMITS:
        top, bottom, least, _ = LIMITS[code]
        shown, limit = below(_actual(report, code), least), percent(least)
        return rng.choice(
            (
                f"{top}/{bottom} is {shown}, below {limit}.",
                f"{top}/{bottom} of {shown} is under {limit}.",
                f"{top}/{bottom} = {shown} < {limit}.",
            )
        )
    return _OTHER_FINDINGS[code](rng, report)


def _buffer_finding(rng: Random, report: Report) -> str:
    needed = report.values["CBR"]
    assert needed is not None
    left = below(min(_actual(report, code) - LIMITS[code].least for code in ("CET1", "T1", "TC")), needed)
    return rng.choice(
        (
            f"Above the minima {left} is left for buffers of {percent(needed)}.",
            f"Buffers of {percent(needed)} are met with {left} only.",
        )
    )


def _exposure_finding(rng: Random, report: Report) -> str:
    name, value = max(report.exposures.items(), key=lambda one: one[1])
    tier1 = report.values["T1"]
    assert tier1 is not None
    share = percent(value / tier1)
    return rng.choice(
        (
            f"Exposure {name} is {share} of T1, above {percent(LARGEST)}.",
            f"{name} takes {share} of T1: more than {percent(LARGEST)}.",
        )
    )


def _sum_finding(rng: Random, report: Report) -> str:
    total, formula = _wrong_sum(report)
    return rng.choice((f"{total} is not {formula}.", f"{formula} does not give {total}={_amount(report, total)}."))


def _wrong_sum(report: Report) -> tuple[str, str]:
    """The first total that its parts do not make, and what it should be."""
    there = {key: value for key, value in report.values.items() if value is not None}
    for total, parts in SUMS.items():
        if {total, *parts} <= there.keys() and there[total] != sum(there[part] for part in parts):
            return total, "+".join(parts)
    for total, (whole, part) in DIFFERENCES.items():
        if {total, whole, part} <= there.keys() and there[total] != there[whole] - there[part]:
            return total, f"{whole}-{part}"
    raise ValueError("all sums are right")


def _ratio_finding(rng: Random, report: Report) -> str:
    key, (top, bottom), right = _wrong_ratio(report)
    said = percent(report.values[key] or Decimal(0))
    return rng.choice((f"{key} is told as {said}, and is {right}.", f"{top}/{bottom} gives {right}, not {said}."))


def _wrong_ratio(report: Report) -> tuple[str, tuple[str, str], str]:
    """The first ratio that is not that of its amounts, what it is of, and what it should be."""
    for key, of in RATIOS.items():
        said, top, bottom = (report.values.get(name) for name in (key, *of))
        if said is not None and top is not None and bottom and abs(said - top / bottom) > ROUNDING:
            return key, of, percent(top / bottom)
    raise ValueError("all ratios are right")


def _missing_finding(rng: Random, report: Report) -> str:
    what = _missing(report)
    return rng.choice((f"{what} is missing.", f"The report lacks {what}."))


def _missing(report: Report) -> str:
    """A template of which nothing is there, else a value."""
    lost = [key for key in MANDATORY if report.values.get(key) is None]
    template = BY_KEY[lost[0]].template
    gone = not any(concept.key in report.values for concept in of_template(template))
    return template if gone else f"{template} {lost[0]}"


def _stale_finding(rng: Random, report: Report) -> str:
    return rng.choice(
        (
            f"Filed {report.filed}, the figures of {report.reference} are stale.",
            f"{report.reference} is more than {STALE_AFTER} days before {report.filed}.",
        )
    )


_OTHER_FINDINGS = {
    "BUFFER": _buffer_finding,
    "LEX": _exposure_finding,
    "SUM": _sum_finding,
    "RATIO": _ratio_finding,
    "MISSING": _missing_finding,
    "STALE": _stale_finding,
}


# --- the directive --------------------------------------------------------------------------------------


def _order(rng: Random, report: Report, code: str, short: bool) -> str:
    measure = rng.choice(_measures(report, code)[: 1 if short and rng.random() < 0.3 else None])
    text = rng.choice(_FRAMES).format(article=ARTICLES[code], measure=measure, days=_days(report, code))
    return text[0].upper() + text[1:]


def _days(report: Report, code: str) -> int:
    """Deadline: what is far from its limit has less time."""
    if code in ("LCR", "NSFR"):
        return 10 if _actual(report, code) < Decimal("0.9") else 30
    if code in LIMITS:
        return 30 if _actual(report, code) < LIMITS[code].least * Decimal("0.85") else 90
    return {"LEX": 60, "SUM": 10, "RATIO": 10, "MISSING": 5, "STALE": 5, "BUFFER": 5}[code]


def _measures(report: Report, code: str) -> tuple[str, ...]:
    if code in LIMITS:
        least, name = LIMITS[code].least, NAMES[code]
        shown, limit = below(_actual(report, code), least), percent(least)
        return (
            f"raise {name} from {shown} to {limit}",
            f"restore {name} to {limit}, now {shown}",
            f"bring {name} of {shown} to {limit}",
        )
    return _OTHER_MEASURES[code](report)


def _buffer_measures(report: Report) -> tuple[str, ...]:
    needed = percent(report.values["CBR"] or Decimal(0))
    return (
        f"file a capital conservation plan for buffers of {needed}",
        f"limit distributions and plan for buffers of {needed}",
    )


def _exposure_measures(report: Report) -> tuple[str, ...]:
    name, value = max(report.exposures.items(), key=lambda one: one[1])
    scale = report.scale_of(EXPOSURES)
    shown = f"{value.scaleb(-scale):f} {UNITS[scale]}"
    limit = percent(LARGEST)
    return (f"cut exposure {name} of {shown} to {limit} of T1", f"bring {name}, now {shown}, under {limit} of T1")


def _sum_measures(report: Report) -> tuple[str, ...]:
    total, formula = _wrong_sum(report)
    return (f"correct {total} to {formula} and file again", f"resubmit with a {total} that adds up")


def _ratio_measures(report: Report) -> tuple[str, ...]:
    key, _, right = _wrong_ratio(report)
    return (f"file {key} again as {right}", f"resubmit with {key} of {right}")


def _missing_measures(report: Report) -> tuple[str, ...]:
    return (f"file {_missing(report)}", f"hand in {_missing(report)}")


def _stale_measures(report: Report) -> tuple[str, ...]:
    days = (report.filed - report.reference).days
    return (f"file figures that are not {days} days old", f"replace figures that are {days} days old")


_OTHER_MEASURES = {
    "BUFFER": _buffer_measures,
    "LEX": _exposure_measures,
    "SUM": _sum_measures,
    "RATIO": _ratio_measures,
    "MISSING": _missing_measures,
    "STALE": _stale_measures,
}
