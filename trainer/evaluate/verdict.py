"""What two runs' scores say, in one sentence with the limits of the evidence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from trainer.evaluate.metrics import METRICS

FOUNDING = (0.03, 0.08)
"""The founding text expects so much, relative, from full fine-tuning where LoRA falls short; in its own case F1 rose by
12 points, from 0.79 to 0.91."""
_EXPECTED_TO_DIFFER = ("optim.lr", "lora", "stages")
"""Settings of the method; what else differs may be the cause."""


class Compared(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def method(self) -> str: ...
    @property
    def scores(self) -> Mapping[str, Any]: ...


def verdict(pair: Mapping[str, Any], a: Compared, b: Compared) -> str:
    """The first run against the second, by F1 micro, or by ROUGE-L where there are no labels."""
    metric = next(name for name in ("f1_micro", "rouge_l") if name in pair["differences"])
    gap = pair["differences"][metric]
    if gap["value"] is None or gap["low"] is None:
        return f"{a.name} and {b.name} have nothing to be told apart by: no row has a label, and no answer gives one."
    values = [side.scores["scores"][metric]["value"] for side in (a, b)]
    found = (
        f"{METRICS[metric]} {values[0]:.3f} of {a.name} ({a.method}) against {values[1]:.3f} of {b.name} ({b.method})"
    )
    span = f"95 % {100 * gap['low']:+.1f} to {100 * gap['high']:+.1f}, {a.scores['rows']:,} rows"
    points = f"{100 * gap['value']:+.1f} points ({span})"
    return f"{found}: {points}, {_meaning(gap, values, (a, b))}; {_limits(pair)}."


def _meaning(gap: Mapping[str, float], values: list[float], sides: tuple[Compared, Compared]) -> str:
    a, b = sides
    if gap["low"] <= 0 <= gap["high"]:
        seen = max(gap["high"] - gap["value"], gap["value"] - gap["low"])
        return (
            f"which shows no difference: one of less than about {100 * seen:.1f} points cannot be seen on so few rows"
        )
    better, worse = (a, b) if gap["value"] > 0 else (b, a)
    text = f"so {better.name} is the better one on these rows"
    if (better.method == "full") == (worse.method == "full"):
        return text
    if better.method != "full":
        return f"{text}, against the 3 to 8 % for full fine-tuning that the founding text expects"
    gain = abs(gap["value"]) / (min(values) or abs(gap["value"]))
    low, high = FOUNDING
    place = "below" if gain < low else "within" if gain <= high else "above"
    return (
        f"{text} by {100 * gain:.0f} %, {place} the 3 to 8 % that the founding text expects from full fine-tuning "
        f"where LoRA falls short (its own case: 12 points)"
    )


def _limits(pair: Mapping[str, Any]) -> str:
    """What the interval does not cover."""
    others = [key for key in pair["settings"] if not key.startswith(_EXPECTED_TO_DIFFER)]
    text = "one training each: what another seed, learning rate, size or data would give is not in the interval"
    if others:
        text += f", and the runs differ in more than the method ({', '.join(others[:4])})"
    if pair["room"][0] != pair["room"][1]:
        text += f", and their answers had different room ({pair['room'][0]} and {pair['room'][1]} tokens)"
    return text
