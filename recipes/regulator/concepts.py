"""What a report may hold: templates, their rows, and how each is called in the taxonomy and in the text.

Codes of templates and rows follow those of the EBA's reporting framework where it has such a row; the taxonomy is our
own, small, and cites no text of theirs.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Kind = Literal["amount", "ratio"]


class Concept(NamedTuple):
    key: str
    """In the short text, in formulas, in the taxonomy."""
    template: str
    row: str
    label: str
    kind: Kind = "amount"
    detail: bool = False
    """A breakdown that the short form leaves out, and that nobody has to report."""


TEMPLATES = {
    "F01.01": "Balance sheet: assets",
    "F01.02": "Balance sheet: liabilities and equity",
    "C01.00": "Own funds",
    "C02.00": "Total risk exposure amount",
    "C03.00": "Capital ratios",
    "C47.00": "Leverage ratio",
    "C72.00": "Liquid assets",
    "C73.00": "Outflows",
    "C74.00": "Inflows",
    "C76.00": "Liquidity coverage ratio",
    "C84.00": "Net stable funding ratio",
    "C28.00": "Large exposures",
}
EXPOSURES = "C28.00"
"""Its rows are counterparties: as many as there are."""

CONCEPTS = (
    Concept("CASH", "F01.01", "r010", "Cash and balances at central banks", detail=True),
    Concept("SEC", "F01.01", "r141", "Debt securities", detail=True),
    Concept("LOANS", "F01.01", "r183", "Loans and advances", detail=True),
    Concept("OTHA", "F01.01", "r370", "Other assets", detail=True),
    Concept("TA", "F01.01", "r380", "Total assets", detail=True),
    Concept("DEP", "F01.02", "r110", "Deposits", detail=True),
    Concept("WHOLE", "F01.02", "r120", "Debt securities issued", detail=True),
    Concept("OTHL", "F01.02", "r280", "Other liabilities", detail=True),
    Concept("EQ", "F01.02", "r300", "Total equity", detail=True),
    Concept("TL", "F01.02", "r310", "Total equity and liabilities", detail=True),
    Concept("OF", "C01.00", "r0010", "Own funds"),
    Concept("T1", "C01.00", "r0015", "Tier 1 capital"),
    Concept("CET1", "C01.00", "r0020", "Common Equity Tier 1 capital"),
    Concept("CI", "C01.00", "r0030", "Capital instruments and reserves", detail=True),
    Concept("DED", "C01.00", "r0300", "Deductions from Common Equity Tier 1", detail=True),
    Concept("AT1", "C01.00", "r0530", "Additional Tier 1 capital"),
    Concept("T2", "C01.00", "r0750", "Tier 2 capital"),
    Concept("TREA", "C02.00", "r0010", "Total risk exposure amount"),
    Concept("CR", "C02.00", "r0040", "Credit risk"),
    Concept("MR", "C02.00", "r0520", "Market risk"),
    Concept("OR", "C02.00", "r0590", "Operational risk"),
    Concept("CET1R", "C03.00", "r0010", "Common Equity Tier 1 ratio", "ratio"),
    Concept("T1R", "C03.00", "r0030", "Tier 1 ratio", "ratio"),
    Concept("TCR", "C03.00", "r0050", "Total capital ratio", "ratio"),
    Concept("CBR", "C03.00", "r0230", "Combined buffer requirement", "ratio"),
    Concept("EXP", "C47.00", "r0290", "Leverage exposure measure"),
    Concept("LR", "C47.00", "r0330", "Leverage ratio", "ratio"),
    Concept("L1", "C72.00", "r0020", "Level 1 assets", detail=True),
    Concept("L2", "C72.00", "r0310", "Level 2 assets after haircuts", detail=True),
    Concept("OUT", "C73.00", "r0010", "Outflows", detail=True),
    Concept("IN", "C74.00", "r0010", "Inflows after the cap", detail=True),
    Concept("LB", "C76.00", "r0010", "Liquidity buffer"),
    Concept("NO", "C76.00", "r0020", "Net liquidity outflow"),
    Concept("LCR", "C76.00", "r0030", "Liquidity coverage ratio", "ratio"),
    Concept("ASF", "C84.00", "r0210", "Available stable funding"),
    Concept("RSF", "C84.00", "r0100", "Required stable funding"),
    Concept("NSFR", "C84.00", "r0220", "Net stable funding ratio", "ratio"),
)
BY_KEY = {concept.key: concept for concept in CONCEPTS}
MANDATORY = tuple(concept.key for concept in CONCEPTS if not concept.detail)
"""What a report without it is not complete."""

RATIOS = {
    "CET1R": ("CET1", "TREA"),
    "T1R": ("T1", "TREA"),
    "TCR": ("OF", "TREA"),
    "LR": ("T1", "EXP"),
    "LCR": ("LB", "NO"),
    "NSFR": ("ASF", "RSF"),
}
"""What each reported ratio is of: numerator, denominator."""

SUMS = {
    "T1": ("CET1", "AT1"),
    "OF": ("T1", "T2"),
    "TREA": ("CR", "MR", "OR"),
    "TA": ("CASH", "SEC", "LOANS", "OTHA"),
    "TL": ("DEP", "WHOLE", "OTHL", "EQ"),
    "LB": ("L1", "L2"),
}
"""What each total is of."""

DIFFERENCES = {"CET1": ("CI", "DED"), "NO": ("OUT", "IN")}
"""What each balance is of: the first less the second."""


def of_template(template: str) -> tuple[Concept, ...]:
    return tuple(concept for concept in CONCEPTS if concept.template == template)
