"""A report as an XBRL 2.1 instance, and back. What the taxonomy does not know is refused in one line."""

from __future__ import annotations

import io
from datetime import date
from decimal import Decimal, InvalidOperation
from typing import NamedTuple
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from recipes.regulator.concepts import BY_KEY, EXPOSURES
from recipes.regulator.report import Report, ReportError
from recipes.regulator.taxonomy import NAMESPACE, SCHEMA

SCHEME = "https://outlast.example/institution"
_XBRLI, _XBRLDI = "http://www.xbrl.org/2003/instance", "http://xbrl.org/2006/xbrldi"
_ISO4217 = "http://www.xbrl.org/2003/iso4217"
_NIL = "{http://www.w3.org/2001/XMLSchema-instance}nil"
_RATIO_DECIMALS = 4


def write(report: Report, schema: str = f"taxonomy/{SCHEMA}") -> str:
    """The instance; `schema`: where the taxonomy lies, seen from it."""
    contexts = [_context(report, "c")]
    facts = [f'<p:{name} contextRef="c">{day}</p:{name}>' for name, day in _dates(report).items()]
    for key, value in report.values.items():
        concept = BY_KEY[key]
        is_ratio = concept.kind == "ratio"
        decimals = _RATIO_DECIMALS if is_ratio else -report.scale_of(concept.template)
        facts.append(_fact(key, "c", "pure" if is_ratio else "EUR", decimals, value))
    for number, (name, value) in enumerate(report.exposures.items(), 1):
        member = f"<p:counterparty>{escape(name)}</p:counterparty>"
        dimension = f'<xbrldi:typedMember dimension="p:CPY">{member}</xbrldi:typedMember>'
        contexts.append(_context(report, f"x{number}", f"<xbrli:scenario>{dimension}</xbrli:scenario>"))
        facts.append(_fact("LE", f"x{number}", "EUR", -report.scale_of(EXPOSURES), value))
    return f"""\
<?xml version="1.0" encoding="UTF-8"?>
<xbrli:xbrl xmlns:xbrli="{_XBRLI}" xmlns:link="http://www.xbrl.org/2003/linkbase"
    xmlns:xlink="http://www.w3.org/1999/xlink" xmlns:xbrldi="{_XBRLDI}" xmlns:iso4217="{_ISO4217}"
    xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xmlns:p="{NAMESPACE}">
<link:schemaRef xlink:type="simple" xlink:href="{schema}"/>
{chr(10).join(contexts)}
<xbrli:unit id="EUR"><xbrli:measure>iso4217:EUR</xbrli:measure></xbrli:unit>
<xbrli:unit id="pure"><xbrli:measure>xbrli:pure</xbrli:measure></xbrli:unit>
{chr(10).join(facts)}
</xbrli:xbrl>
"""


def _dates(report: Report) -> dict[str, date]:
    return {"reference": report.reference, "filed": report.filed}


def _context(report: Report, name: str, scenario: str = "") -> str:
    entity = f'<xbrli:identifier scheme="{SCHEME}">{report.institution}</xbrli:identifier>'
    period = f"<xbrli:period><xbrli:instant>{report.reference}</xbrli:instant></xbrli:period>"
    return f'<xbrli:context id="{name}"><xbrli:entity>{entity}</xbrli:entity>{period}{scenario}</xbrli:context>'


def _fact(key: str, context: str, unit: str, decimals: int, value: Decimal | None) -> str:
    if value is None:
        return f'<p:{key} contextRef="{context}" unitRef="{unit}" xsi:nil="true"/>'
    return f'<p:{key} contextRef="{context}" unitRef="{unit}" decimals="{decimals}">{value:f}</p:{key}>'


# --- reading --------------------------------------------------------------------------------------------


class _Context(NamedTuple):
    institution: str
    instant: str
    counterparty: str | None


def read(data: bytes) -> Report:
    """The report of an instance. Raises ReportError."""
    root, prefixes = _parsed(data)
    contexts = {node.get("id", ""): _read_context(node) for node in root.findall(f"{{{_XBRLI}}}context")}
    units = {node.get("id", ""): _read_unit(node, prefixes) for node in root.findall(f"{{{_XBRLI}}}unit")}
    if len({(one.institution, one.instant) for one in contexts.values()}) != 1:
        raise ReportError("a report is of one institution at one date")
    facts = [node for node in root if node.tag.startswith(f"{{{NAMESPACE}}}")]
    whole = next(iter(contexts.values()))
    reference, filed = _the_date(facts, "reference"), _the_date(facts, "filed")
    if str(reference) != whole.instant:
        raise ReportError(f"reference says {reference}, the contexts say {whole.instant}")
    report = Report(whole.institution, reference, filed)
    for node in facts:
        if (key := node.tag.partition("}")[2]) not in _dates(report):
            _put(report, key, node, contexts, units)
    return report


def _parsed(data: bytes) -> tuple[ElementTree.Element, dict[str, str]]:
    if b"<!DOCTYPE" in data.replace(b"\0", b""):  # its entities could make a small file a large one
        raise ReportError("a document type: an instance has none")
    prefixes: dict[str, str] = {}
    root = None
    try:
        for event, item in ElementTree.iterparse(io.BytesIO(data), events=("start-ns", "start")):
            if event == "start-ns":
                prefixes[item[0]] = item[1]
            elif root is None:
                root = item
    except ElementTree.ParseError as error:
        raise ReportError(f"no XML: {error}") from None
    if root is None or root.tag != f"{{{_XBRLI}}}xbrl":
        raise ReportError("no XBRL instance: its root is not xbrli:xbrl")
    return root, prefixes


def _read_context(node: ElementTree.Element) -> _Context:
    member = node.find(f".//{{{NAMESPACE}}}counterparty")
    found = [node.findtext(f".//{{{_XBRLI}}}{name}", "").strip() for name in ("identifier", "instant")]
    if not all(found):
        raise ReportError(f"context {node.get('id')}: no identifier, or no instant")
    return _Context(*found, None if member is None else (member.text or "").strip())


def _read_unit(node: ElementTree.Element, prefixes: dict[str, str]) -> tuple[str, str]:
    """Namespace and name of a unit's measure."""
    prefix, _, name = node.findtext(f"{{{_XBRLI}}}measure", "").strip().rpartition(":")
    return prefixes.get(prefix, ""), name


def _the_date(facts: list[ElementTree.Element], name: str) -> date:
    found = [(node.text or "").strip() for node in facts if node.tag == f"{{{NAMESPACE}}}{name}"]
    try:
        [day] = found
        return date.fromisoformat(day)
    except ValueError:
        raise ReportError(f"{name}: a report has one date of it, and not {', '.join(found) or 'none'}") from None


_UNITS = {"amount": (_ISO4217, "EUR"), "ratio": (_XBRLI, "pure")}


def _put(
    report: Report,
    key: str,
    node: ElementTree.Element,
    contexts: dict[str, _Context],
    units: dict[str, tuple[str, str]],
) -> None:
    context, unit = contexts.get(node.get("contextRef", "")), units.get(node.get("unitRef", ""))
    if key not in BY_KEY and key != "LE" or context is None:
        raise ReportError(f"{key}: no such concept, or no such context")
    kind = BY_KEY[key].kind if key in BY_KEY else "amount"
    template = BY_KEY[key].template if key in BY_KEY else EXPOSURES
    if unit != _UNITS[kind]:
        raise ReportError(f"{key}: its unit is {unit[1] if unit else 'none'}: it is reported in {_UNITS[kind][1]}")
    if (context.counterparty is None) == (key == "LE"):
        raise ReportError(f"{key}: a counterparty belongs to large exposures, and to nothing else")
    value = None if node.get(_NIL) in ("true", "1") else _value(key, node)
    if key == "LE":
        assert context.counterparty is not None
        if value is None or context.counterparty in report.exposures:
            raise ReportError(f"large exposure to {context.counterparty}: nil, or there twice")
        report.exposures[context.counterparty] = value
    elif key in report.values:
        raise ReportError(f"{key} stands there twice")
    else:
        report.values[key] = value
    if kind == "amount" and value is not None:
        report.scales[template] = max(0, -_decimals(key, node))


def _value(key: str, node: ElementTree.Element) -> Decimal:
    try:
        value = Decimal((node.text or "").strip())
    except InvalidOperation:
        raise ReportError(f"{key}: {(node.text or '').strip()[:40]!r} is no number") from None
    if not value.is_finite() or value.adjusted() > 30:  # no sum of money, and a sum of such overflows
        raise ReportError(f"{key}: {value} is no number")
    return value


def _decimals(key: str, node: ElementTree.Element) -> int:
    text = node.get("decimals", "")
    try:
        return 0 if text == "INF" else int(text)
    except ValueError:
        raise ReportError(f"{key}: decimals={text!r}: a whole number, or INF") from None
