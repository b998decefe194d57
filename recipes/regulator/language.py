"""Language to read before the task: rules as a supervisor words them, reports, and notes that reckon.

Notes stand alone or below their report, as an analyst's do; they say of single figures what they give. Nothing here
is an example of the task: the banks are others, and what is to be written about a report stands nowhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from random import Random

from recipes.regulator import bank, scenarios, text
from recipes.regulator.concepts import BY_KEY, MANDATORY, RATIOS, SUMS
from recipes.regulator.report import Report
from recipes.regulator.rules import ARTICLES, LARGEST, LIMITS, ROUNDING, STALE_AFTER, surplus
from recipes.regulator.text import UNITS
from recipes.regulator.wording import percent

_LIMIT_RULES = (
    "{article}: {numerator}/{denominator} is at least {least}.",
    "An institution keeps {top} of at least {least} of its {bottom} ({article}).",
    "Below {least} of {numerator}/{denominator} the requirement of {article} is not met; at {least} it is.",
    "{code} is broken where {numerator} is less than {least} of {denominator}.",
)
_OTHER_RULES = (
    "{LEX}: no exposure to one counterparty is above {largest} of T1. LEX is broken by one that is.",
    "C28.00 holds the large exposures; T1 stands in C01.00. The largest one is compared with a quarter of T1.",
    "{BUFFER}: what is left above the minima of 4.50%, 6.00% and 8.00% meets the combined buffer requirement CBR, or "
    "BUFFER is broken; where a minimum is not met, that is the finding.",
    "{SUM}: totals are the sums of their parts: T1=CET1+AT1, OF=T1+T2, TREA=CR+MR+OR; else SUM is broken.",
    "{RATIO}: a ratio is told as its amounts give it, with two decimals of a percent; else RATIO is broken.",
    "{MISSING}: a template that is not filed, or a value that is nil, breaks MISSING.",
    "{STALE}: a report that is filed more than {stale} days after its date breaks STALE.",
    "Amounts are in EUR, kEUR or mEUR; a template may have its own unit. 1000 EUR are 1 kEUR, 1000 kEUR are 1 mEUR.",
    "A ratio of 0.0450 is 4.50%, one of 1.0000 is 100.00%.",
    "A capital conservation plan is filed within 5 days where BUFFER is broken.",
)


def texts(rng: Random, banks: list[str], dates: list[date], count: int, short: bool) -> Iterator[str]:
    """A tenth are rules, a tenth reports, three tenths notes on a report, the rest a report with its notes."""
    shown = text.short if short else text.whole
    of = {name: bank.institution(rng, name, short) for name in banks}
    for _ in range(count):
        kind = rng.random()
        if kind < 0.1:
            yield " ".join(_rule(rng) for _ in range(rng.randint(3, 6)))
            continue
        report = scenarios.report(rng, scenarios.wish(rng, short), of[rng.choice(banks)], rng.choice(dates), short)
        yield (shown(report) if kind < 0.2 or kind >= 0.5 else "") + (_notes(rng, report) if kind >= 0.2 else "")


def _rule(rng: Random) -> str:
    if rng.random() < 0.4:
        values = {"largest": percent(LARGEST), "stale": STALE_AFTER, **ARTICLES}
        return rng.choice(_OTHER_RULES).format_map(values)
    code = rng.choice(list(LIMITS))
    top, bottom, least, article = LIMITS[code]
    return rng.choice(_LIMIT_RULES).format(
        code=code,
        numerator=top,
        denominator=bottom,
        top=BY_KEY[top].label,
        bottom=BY_KEY[bottom].label,
        least=percent(least),
        article=article,
    )


def _notes(rng: Random, report: Report) -> str:
    """What the amounts of one report give, and on which side of a limit it lies."""
    notes = [*_ratio_notes(report), *_sum_notes(report), *_exposure_notes(report), *_other_notes(report)]
    return " ".join(rng.sample(notes, min(len(notes), rng.randint(4, 7))))


def _ratio_notes(report: Report) -> Iterator[str]:
    least = {(one.numerator, one.denominator): one.least for one in LIMITS.values()}
    for key, (top, bottom) in RATIOS.items():
        above, below = report.values.get(top), report.values.get(bottom)
        if above is not None and below:
            limit = least[top, bottom]
            side = "below" if above < limit * below else "not below"
            amounts = f"{_shown(report, top)}/{_shown(report, bottom)}"
            yield f"{top}/{bottom} = {amounts} = {percent(above / below)}, {side} {percent(limit)}."
            told = report.values.get(key)
            if told is not None:
                side = "below" if told < limit else "not below"
                right = "as" if abs(told - above / below) <= ROUNDING else "not as"
                yield f"{key}={percent(told)} is {side} {percent(limit)}, {right} {top}/{bottom}."


def _sum_notes(report: Report) -> Iterator[str]:
    for total, parts in SUMS.items():
        there = [report.values.get(key) for key in (total, *parts)]
        if None not in there:
            said, *of = (value for value in there if value is not None)
            verb = "is" if said == sum(of) else "is not"
            formula = " + ".join(_shown(report, part) for part in parts)
            yield f"{total}={_shown(report, total)} {verb} {formula}."


def _exposure_notes(report: Report) -> Iterator[str]:
    tier1 = report.values.get("T1")
    if tier1:
        for name, value in report.exposures.items():
            side = "above" if value > LARGEST * tier1 else "not above"
            unit = UNITS[report.scale_of("C28.00")]
            shown = f"{value.scaleb(-report.scale_of('C28.00')):f} {unit}"
            yield f"{name}={shown} is {percent(value / tier1)} of T1={_shown(report, 'T1')}, {side} {percent(LARGEST)}."


def _other_notes(report: Report) -> Iterator[str]:
    """Of the date, of what is missing, of what is left for buffers."""
    days = (report.filed - report.reference).days
    yield f"Filed {days} days after {report.reference}: {'stale' if days > STALE_AFTER else 'not stale'}."
    there = {key: value for key, value in report.values.items() if value is not None}
    lost = [key for key in MANDATORY if key not in there]
    yield f"Missing: {', '.join(lost)}." if lost else "Nothing is missing."
    if {"CET1", "T1", "OF", "TREA", "CBR"} <= there.keys():
        left = surplus(there) / there["TREA"]
        side = "above" if left >= there["CBR"] else "not above"
        yield f"Left for buffers: {percent(left)}, {side} CBR={percent(there['CBR'])}."


def _shown(report: Report, key: str) -> str:
    value = report.values[key]
    assert value is not None
    return f"{value.scaleb(-report.scale_of(BY_KEY[key].template)):f}"
