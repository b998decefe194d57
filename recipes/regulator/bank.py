"""Figures of one report, from the ratios that it shall have down to its balance sheet: all else is derived."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal
from random import Random
from typing import NamedTuple

from recipes.regulator.concepts import RATIOS

BUFFERS = ("0.0250", "0.0300", "0.0350", "0.0400", "0.0450", "0.0550")


class Institution(NamedTuple):
    """What its reports have in common."""

    name: str
    """Digits of a dummy identifier."""
    scale: int
    """It reports in 10 ** scale euros."""
    trea: float
    """Its total risk exposure amount, about, in these."""
    buffer: str
    counterparties: str
    """A letter each."""


def institution(rng: Random, name: str, short: bool) -> Institution:
    scale, digits = (rng.choice((3, 6)), 4) if short else (3, rng.choice((6, 7, 8)))
    trea = 10 ** (digits - 1 + rng.uniform(0.12, 0.92))
    letters = "".join(sorted(rng.sample("ABCDEFGHJKLMNPQRSTUVWXYZ", 12)))
    return Institution(name, scale, trea, rng.choice(BUFFERS), letters)


@dataclass
class Target:
    """Ratios as fractions of 1."""

    cet1: float
    tier1: float
    total: float
    leverage: float
    lcr: float
    nsfr: float
    largest: float
    """The largest exposure, as a share of Tier 1."""
    exposures: int
    """Counterparties."""


def figures(rng: Random, target: Target, of: Institution) -> tuple[dict[str, Decimal], dict[str, Decimal]]:
    """Values by concept and exposures by counterparty; amounts are whole in the institution's unit."""
    units = _own_funds(rng, target, round(of.trea * rng.uniform(0.8, 1.2)))
    units |= _liquidity(rng, target, units)
    units |= _balance_sheet(rng, units)
    values = {key: Decimal(number).scaleb(of.scale) for key, number in units.items()}
    for key, (top, bottom) in RATIOS.items():
        values[key] = rounded(values[top] / values[bottom])
    values["CBR"] = Decimal(of.buffer)
    shares = sorted((rng.uniform(0.1, 0.9) * target.largest for _ in range(target.exposures - 1)), reverse=True)
    sizes = [round(share * units["T1"]) for share in (target.largest, *shares)]
    names = sorted(rng.sample(of.counterparties, target.exposures))
    return values, {
        name: Decimal(size).scaleb(of.scale) for name, size in zip(names, rng.sample(sizes, len(sizes)), strict=True)
    }


def rounded(ratio: Decimal) -> Decimal:
    """As ratios are reported: four decimals."""
    return ratio.quantize(Decimal("0.0001"), ROUND_HALF_EVEN)


def _split(rng: Random, total: int, *shares: float) -> list[int]:
    """A whole number in parts, about by these shares."""
    weights = [share * rng.uniform(0.7, 1.3) for share in shares]
    parts = [int(total * weight / sum(weights)) for weight in weights]
    return [total - sum(parts[1:]), *parts[1:]]


def _own_funds(rng: Random, target: Target, trea: int) -> dict[str, int]:
    credit, market, operational = _split(rng, trea, 0.82, 0.05, 0.13)
    cet1 = round(target.cet1 * trea)
    tier1 = max(cet1, round(target.tier1 * trea))
    funds = max(tier1, round(target.total * trea))
    deducted = int(cet1 * rng.uniform(0.02, 0.12))
    return {
        "OF": funds,
        "T1": tier1,
        "CET1": cet1,
        "CI": cet1 + deducted,
        "DED": deducted,
        "AT1": tier1 - cet1,
        "T2": funds - tier1,
        "TREA": trea,
        "CR": credit,
        "MR": market,
        "OR": operational,
        "EXP": round(tier1 / target.leverage),
    }


def _liquidity(rng: Random, target: Target, units: dict[str, int]) -> dict[str, int]:
    # A bank of few digits has large outflows, or no ratio could come near to its limit.
    share = rng.uniform(0.04, 0.12) if units["TREA"] > 20_000 else rng.uniform(0.25, 0.5)
    outflow = round(units["EXP"] * share)
    inflow = int(outflow * rng.uniform(0.1, 0.7))  # the cap is three quarters
    buffer = round((outflow - inflow) * target.lcr)
    level1, level2 = _split(rng, buffer, 0.85, 0.15)
    required = round(units["EXP"] * rng.uniform(0.5, 0.75))
    return {
        "L1": level1,
        "L2": level2,
        "OUT": outflow,
        "IN": inflow,
        "LB": buffer,
        "NO": outflow - inflow,
        "ASF": round(required * target.nsfr),
        "RSF": required,
    }


def _balance_sheet(rng: Random, units: dict[str, int]) -> dict[str, int]:
    """The exposure measure counts what is off the balance sheet, too; equity holds what own funds deduct."""
    total = max(int(units["EXP"] * rng.uniform(0.88, 0.97)), units["LB"] + units["CI"] + units["AT1"])
    cash = int(units["L1"] * rng.uniform(0.3, 0.7))
    securities = units["LB"] - cash
    loans, other = _split(rng, total - cash - securities, 0.93, 0.07)
    equity = units["CI"] + units["AT1"]
    deposits, issued, rest = _split(rng, total - equity, 0.72, 0.18, 0.1)
    return {
        "CASH": cash,
        "SEC": securities,
        "LOANS": loans,
        "OTHA": other,
        "TA": total,
        "DEP": deposits,
        "WHOLE": issued,
        "OTHL": rest,
        "EQ": equity,
        "TL": total,
    }
