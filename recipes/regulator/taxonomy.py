"""The taxonomy, made from the tables: a schema with the concepts, their labels, and the rules as a formula linkbase."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from xml.sax.saxutils import quoteattr

from recipes.regulator.concepts import CONCEPTS, MANDATORY
from recipes.regulator.rules import ASSERTIONS, LARGEST, STALE_AFTER

NAMESPACE = "https://outlast.example/prudential"
SCHEMA, LABELS, FORMULAS = "prudential.xsd", "prudential-labels.xml", "prudential-formulas.xml"
_TYPES = {"amount": "monetaryItemType", "ratio": "pureItemType"}
_HEAD = '<?xml version="1.0" encoding="UTF-8"?>\n'
_XLINK = 'xmlns:link="http://www.xbrl.org/2003/linkbase" xmlns:xlink="http://www.w3.org/1999/xlink"'


def write(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in ((SCHEMA, schema()), (LABELS, labels()), (FORMULAS, formulas())):
        (folder / name).write_text(_HEAD + text, encoding="utf-8")


# --- concepts -------------------------------------------------------------------------------------------


def schema() -> str:
    refs = [(LABELS, ' xlink:role="http://www.xbrl.org/2003/role/labelLinkbaseRef"'), (FORMULAS, "")]
    arcrole = 'xlink:arcrole="http://www.w3.org/1999/xlink/properties/linkbase"'
    linkbases = [f'<link:linkbaseRef xlink:type="simple" xlink:href="{name}" {arcrole}{role}/>' for name, role in refs]
    items = [_item(concept.key, _TYPES[concept.kind]) for concept in CONCEPTS]
    items += [_item("LE", "monetaryItemType"), _item("reference", "dateItemType"), _item("filed", "dateItemType")]
    dimension = (
        '<xs:element name="CPY" id="p_CPY" type="xbrli:stringItemType" substitutionGroup="xbrldt:dimensionItem" '
        'abstract="true" nillable="true" xbrli:periodType="instant" xbrldt:typedDomainRef="#p_counterparty"/>\n'
        '<xs:element name="counterparty" id="p_counterparty" type="xs:string"/>'
    )
    return f"""\
<xs:schema xmlns:xs="http://www.w3.org/2001/XMLSchema" xmlns:xbrli="http://www.xbrl.org/2003/instance" {_XLINK}
    xmlns:xbrldt="http://xbrl.org/2005/xbrldt" targetNamespace="{NAMESPACE}" elementFormDefault="qualified">
<xs:annotation><xs:appinfo>
{_lines(linkbases)}
</xs:appinfo></xs:annotation>
<xs:import namespace="http://www.xbrl.org/2003/instance"
    schemaLocation="http://www.xbrl.org/2003/xbrl-instance-2003-12-31.xsd"/>
<xs:import namespace="http://xbrl.org/2005/xbrldt" schemaLocation="http://www.xbrl.org/2005/xbrldt-2005.xsd"/>
{_lines(items)}
{dimension}
</xs:schema>
"""


def _item(name: str, kind: str) -> str:
    return (
        f'<xs:element name="{name}" id="p_{name}" type="xbrli:{kind}" substitutionGroup="xbrli:item" '
        f'nillable="true" xbrli:periodType="instant"/>'
    )


def labels() -> str:
    named = {concept.key: f"{concept.template} {concept.row} {concept.label}" for concept in CONCEPTS}
    named |= {"LE": "C28.00 Exposure to one counterparty", "reference": "Reference date", "filed": "Date of the filing"}
    lines = []
    for key, label in named.items():
        lines += [
            f'<link:loc xlink:type="locator" xlink:href="{SCHEMA}#p_{key}" xlink:label="{key}"/>',
            f'<link:label xlink:type="resource" xlink:label="{key}_label" xml:lang="en" '
            f'xlink:role="http://www.xbrl.org/2003/role/label">{label}</link:label>',
            '<link:labelArc xlink:type="arc" xlink:arcrole="http://www.xbrl.org/2003/arcrole/concept-label" '
            f'xlink:from="{key}" xlink:to="{key}_label"/>',
        ]
    role = 'xlink:role="http://www.xbrl.org/2003/role/link"'
    return (
        f"<link:linkbase {_XLINK}>\n"
        f'<link:labelLink xlink:type="extended" {role}>\n{_lines(lines)}\n</link:labelLink>\n</link:linkbase>\n'
    )


# --- rules ----------------------------------------------------------------------------------------------


_FILTERS = {
    "http://xbrl.org/2008/assertion/value": "http://www.xbrl.org/2008/value-assertion.xsd",
    "http://xbrl.org/2008/filter/concept": "http://www.xbrl.org/2008/concept-filter.xsd",
    "http://xbrl.org/2008/filter/dimension": "http://www.xbrl.org/2008/dimension-filter.xsd",
    "http://xbrl.org/2010/filter/aspect-cover": "http://www.xbrl.org/2010/aspect-cover-filter.xsd",
}
"""Namespaces of the formula linkbase's elements, and where their schemas lie."""


def formulas() -> str:
    """Each check as a value assertion, whose id begins with its rule's code."""
    asserted = [(one.name, one.formula, {key: key for key in one.needs}) for one in ASSERTIONS]
    asserted.append(("LEX", f"$LE le {LARGEST} * $T1", {"LE": "LE", "T1": "T1"}))
    age = f"$filed - $reference le xs:dayTimeDuration('P{STALE_AFTER}D')"
    asserted.append(("STALE", age, {"filed": "filed", "reference": "reference"}))
    # `filed` is always there: an assertion whose facts are all absent is not evaluated.
    all_there = f"count(({', '.join(f'${key}' for key in MANDATORY)})) eq {len(MANDATORY)}"
    asserted.append(("MISSING", all_there, {"filed": "filed", **{key: f"{key}_or_none" for key in MANDATORY}}))
    variables = [concept.key for concept in CONCEPTS] + ["reference", "filed"]
    lines = [line for key in variables for line in _variable(key, key)]
    lines += [line for key in MANDATORY for line in _variable(f"{key}_or_none", key, ' fallbackValue="()"')]
    lines += [*_variable("LE", "LE"), _filter_arc("LE", "by_counterparty")]
    for name, formula, used in asserted:
        lines.append(
            f'<va:valueAssertion xlink:type="resource" xlink:label="assert_{name}" id="{name}" '
            f'aspectModel="dimensional" implicitFiltering="true" test={quoteattr(formula)}/>'
        )
        lines += [
            _arc("variable:variableArc", "variable-set", f"assert_{name}", v, f'name="{n}"') for n, v in used.items()
        ]
    return f"""\
<link:linkbase {_XLINK} xmlns:generic="http://xbrl.org/2008/generic" xmlns:variable="http://xbrl.org/2008/variable"
    xmlns:va="http://xbrl.org/2008/assertion/value" xmlns:cf="http://xbrl.org/2008/filter/concept"
    xmlns:df="http://xbrl.org/2008/filter/dimension" xmlns:acf="http://xbrl.org/2010/filter/aspect-cover"
    xmlns:xs="http://www.w3.org/2001/XMLSchema" xmlns:p="{NAMESPACE}"
    xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xsi:schemaLocation="{" ".join(chain(*_FILTERS.items()))}">
<link:roleRef roleURI="http://www.xbrl.org/2008/role/link" xlink:type="simple"
    xlink:href="http://www.xbrl.org/2008/generic-link.xsd#standard-link-role"/>
<link:arcroleRef arcroleURI="http://xbrl.org/arcrole/2008/variable-set" xlink:type="simple"
    xlink:href="http://www.xbrl.org/2008/variable.xsd#variable-set"/>
<link:arcroleRef arcroleURI="http://xbrl.org/arcrole/2008/variable-filter" xlink:type="simple"
    xlink:href="http://www.xbrl.org/2008/variable.xsd#variable-filter"/>
<generic:link xlink:type="extended" xlink:role="http://www.xbrl.org/2008/role/link">
<acf:aspectCover xlink:type="resource" xlink:label="any_unit"><acf:aspect>unit</acf:aspect></acf:aspectCover>
<df:typedDimension xlink:type="resource" xlink:label="by_counterparty"><df:dimension><df:qname>p:CPY</df:qname>
</df:dimension></df:typedDimension>
{_lines(lines)}
</generic:link>
</link:linkbase>
"""


def _variable(label: str, concept: str, more: str = "") -> list[str]:
    """A variable for the fact of one concept, whatever its unit: amounts stand beside ratios and dates."""
    return [
        f'<variable:factVariable xlink:type="resource" xlink:label="{label}" bindAsSequence="false"{more}/>',
        f'<cf:conceptName xlink:type="resource" xlink:label="is_{label}"><cf:concept><cf:qname>p:{concept}</cf:qname>'
        "</cf:concept></cf:conceptName>",
        _filter_arc(label, f"is_{label}"),
        _filter_arc(label, "any_unit"),
    ]


def _filter_arc(variable: str, by: str) -> str:
    return _arc("variable:variableFilterArc", "variable-filter", variable, by, 'complement="false" cover="true"')


def _arc(element: str, arcrole: str, begin: str, end: str, more: str) -> str:
    return (
        f'<{element} xlink:type="arc" xlink:arcrole="http://xbrl.org/arcrole/2008/{arcrole}" '
        f'xlink:from="{begin}" xlink:to="{end}" order="1" {more}/>'
    )


def _lines(lines: Iterable[str]) -> str:
    return "\n".join(lines)
