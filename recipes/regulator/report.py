"""A report: the facts of one institution at one date, and how they are shown. No rule is known here."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal


class ReportError(ValueError):
    """What cannot be judged, in one line."""


@dataclass
class Report:
    institution: str
    """Digits of a dummy identifier."""
    reference: date
    filed: date
    values: dict[str, Decimal | None] = field(default_factory=dict)
    """By the concept's key: euros, or a ratio as a fraction of 1; None: reported as nil."""
    exposures: dict[str, Decimal] = field(default_factory=dict)
    """Euros, by counterparty."""
    scales: dict[str, int] = field(default_factory=dict)
    """By template: amounts are reported in so many powers of ten of a euro; default: `scale`."""
    scale: int = 3
    percent: bool = True
    """Ratios are printed in percent; else as a fraction of 1."""

    def scale_of(self, template: str) -> int:
        return self.scales.get(template, self.scale)
