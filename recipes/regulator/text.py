"""The text that the model reads: a report in lines, short (keys) or whole (rows with their labels), and back.

LEI=00417 ref=2021-03-31 filed=2021-05-07 mEUR
C01.00 OF=943 T1=843 CET1=812 AT1=31 T2=100
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import date
from decimal import Decimal

from recipes.regulator.concepts import BY_KEY, EXPOSURES, TEMPLATES, Concept, of_template
from recipes.regulator.report import Report, ReportError

UNITS = {0: "EUR", 3: "kEUR", 6: "mEUR"}
SCALES = {unit: scale for scale, unit in UNITS.items()}
_HEAD = re.compile(r"LEI=(\d+) ref=(\S+) filed=(\S+) (\w+)")
_WHOLE_TEMPLATE = re.compile(r"([CF]\d\d\.\d\d) [^()]*?(?: \((\w+)\))?")
_ROW = re.compile(r"(r\d+) (.+) = (\S+)")


def short(report: Report) -> str:
    """Keys and values, a line a template."""
    lines = [_head(report)]
    for template, rows in _filled(report, details=False):
        scale = report.scale_of(template)
        unit = f"{UNITS[scale]} " if scale != report.scale else ""
        lines.append(f"{template} {unit}" + " ".join(f"{key}={value}" for key, _, value in rows))
    return "\n".join(lines) + "\n"


def whole(report: Report) -> str:
    """A line a row, with its code and label."""
    lines = [_head(report)]
    for template, rows in _filled(report, details=True):
        scale = report.scale_of(template)
        unit = f" ({UNITS[scale]})" if scale != report.scale else ""
        lines.append(f"{template} {TEMPLATES[template]}{unit}")
        lines += [f"{row} {BY_KEY[key].label if key in BY_KEY else key} = {value}" for key, row, value in rows]
    return "\n".join(lines) + "\n"


def _head(report: Report) -> str:
    return f"LEI={report.institution} ref={report.reference} filed={report.filed} {UNITS[report.scale]}"


def _filled(report: Report, details: bool) -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """Each template that has values: key, row and value, as they are printed."""
    for template in TEMPLATES:
        concepts = [c for c in of_template(template) if c.key in report.values and (details or not c.detail)]
        scale = report.scale_of(template)
        rows = [(c.key, c.row, _shown(report, c, scale)) for c in concepts]
        if template == EXPOSURES:
            named = enumerate(report.exposures.items(), 1)
            rows = [(name, f"r{number:03}", _scaled(value, scale)) for number, (name, value) in named]
        if rows:
            yield template, rows


def _shown(report: Report, concept: Concept, scale: int) -> str:
    value = report.values[concept.key]
    if value is None:
        return "nil"
    if concept.kind == "amount":
        return _scaled(value, scale)
    return f"{value * 100:.2f}%" if report.percent else f"{value:.4f}"


def _scaled(value: Decimal, scale: int) -> str:
    return f"{value.scaleb(-scale).normalize():f}"


def read(text: str) -> Report:
    """The report of a text, in either form. Raises ReportError."""
    head, *lines = text.strip().split("\n")
    match = _HEAD.fullmatch(head)
    if match is None:
        raise ReportError(f"no report begins with {head[:60]!r}")
    institution, reference, filed, unit = match.groups()
    report = Report(institution, _date(reference), _date(filed), scale=_scale(unit))
    template = ""
    for line in lines:
        if row := _ROW.fullmatch(line):
            _put(report, template, *_of_row(template, row[1], row[2]), row[3])
        else:
            template = _read_template(report, line)
    return report


def _read_template(report: Report, line: str) -> str:
    """A line that begins a template, with the values that it holds in the short form."""
    unit, items = None, []
    if "=" in line:
        template, *items = line.split()
        if items and "=" not in items[0]:
            unit = items.pop(0)
    else:
        match = _WHOLE_TEMPLATE.fullmatch(line)
        template, unit = match.groups() if match else (line, None)
    if template not in TEMPLATES:
        raise ReportError(f"no template and no row: {line[:60]!r}")
    if unit is not None:
        report.scales[template] = _scale(unit)
    for item in items:
        key, equals, value = item.partition("=")
        if not equals:
            raise ReportError(f"{template}: {item!r} is no KEY=VALUE")
        _put(report, template, key, BY_KEY.get(key), value)
    return template


def _of_row(template: str, row: str, label: str) -> tuple[str, Concept | None]:
    found = next((concept for concept in of_template(template) if concept.row == row), None)
    return (found.key if found else label), found


def _put(report: Report, template: str, key: str, concept: Concept | None, value: str) -> None:
    if template == EXPOSURES:
        store: dict[str, Decimal] | dict[str, Decimal | None] = report.exposures
        number: Decimal | None = _amount(key, value, report.scale_of(template))
    elif concept is None or concept.template != template:
        raise ReportError(f"{template or 'before any template'}: there is no {key}")
    else:
        store = report.values
        number = _number(concept, value, report.scale_of(template))
    if key in store:
        raise ReportError(f"{template}: {key} stands there twice")
    store[key] = number  # type: ignore[assignment]  # exposures are never nil: _amount refuses it


def _number(concept: Concept, value: str, scale: int) -> Decimal | None:
    if value == "nil":
        return None
    if concept.kind == "amount":
        return _amount(concept.key, value, scale)
    percent = value.endswith("%")
    if not re.fullmatch(r"-?\d+\.\d+%?", value):
        raise ReportError(f"{concept.key}={value}: a ratio is 4.50% or 0.0450")
    return Decimal(value.removesuffix("%")) / (100 if percent else 1)


def _amount(key: str, value: str, scale: int) -> Decimal:
    if not re.fullmatch(r"-?\d+", value):
        raise ReportError(f"{key}={value}: an amount is a whole number of the unit")
    return Decimal(value).scaleb(scale)


def _date(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise ReportError(f"{text!r} is no date") from None


def _scale(unit: str) -> int:
    if unit not in SCALES:
        raise ReportError(f"amounts in {unit}: known are {', '.join(SCALES)}")
    return SCALES[unit]
