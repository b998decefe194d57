"""From what contenders told to rows: times beside each other, losses apart, and where the time of a step went."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from statistics import median

from benchmarks.rows import Row
from benchmarks.step.race import Ran, Step, p20

AGREE = 10.0
"""ppm: losses that are further apart are not those of equal math."""


def time_rows(name: str, ours: Ran, peer: str, theirs: Ran, times: float | None, bare: Ran | None = None) -> list[Row]:
    """A step's wall clock, with the goal where there is one, and its CPU seconds, which a neighbour changes less.
    `bare`: a loop that does nothing but the step, where the peer is another."""
    limit = milliseconds(bare, wall) if bare else None
    row = Row(f"{name}: step", "ms", milliseconds(ours, wall), peer, milliseconds(theirs, wall))
    row = replace(row.at_least(times or 1.0), limit=limit, limit_name="bare loop" if limit else "")
    if times is None:
        row = replace(row, goal="to run" if theirs.words else "", met=None, cause=theirs.words)
    else:
        row = replace(row, cause=ours.words or theirs.words or where(ours, theirs, bare))
    spent = Row(f"{name}: step, CPU", "ms", milliseconds(ours, cpu), peer, milliseconds(theirs, cpu))
    return [row, replace(spent.at_least(1.0), goal="", met=None)]


def wall(step: Step) -> float:
    return step.wall


def cpu(step: Step) -> float:
    return step.cpu


def milliseconds(ran: Ran, of: Callable[[Step], float]) -> float | None:
    """The 20th percentile."""
    return None if ran.words else 1000 * p20(map(of, ran.counted))


def where(ours: Ran, theirs: Ran, bare: Ran | None) -> str:
    """The parts of both steps, and what would be left to win beside the model's own work."""
    mine, other = (parts(ran) for ran in (ours, theirs))
    told = ", ".join(f"{part} {mine[part]:.2f} and {other[part]:.2f}" for part in mine)
    whole, around = sum(mine.values()), mine["around"]
    text = f"measured, ms of ours and of the peer's: {told}; with nothing around the model and AdamW ours would be "
    text += f"{sum(other.values()) / (whole - around):.2f}x"
    if bare and not bare.words:
        text += f", and the bare loop is {p20(map(wall, theirs.counted)) / p20(map(wall, bare.counted)):.2f}x"
    return text


def parts(ran: Ran) -> dict[str, float]:
    """Milliseconds, the 20th percentile of each part by itself."""
    found = [step.parts for step in ran.counted]
    return {part: 1000 * p20(one[part] for one in found) for part in found[0]}


def others_row(name: str, ran: Iterable[Ran]) -> Row:
    """How far the figures of a race can be trusted."""
    found = [one.others for each in ran for one in each.rounds]
    return Row(f"{name}: cores that other processes had meanwhile", "", median(found) if found else None)


# --- losses ---------------------------------------------------------------------------------------------------


def losses(ran: Ran, count: int) -> list[float]:
    """Of its first steps. Outlast's arrive a step later than the others'."""
    return [step.values["loss"] for step in ran.steps if "loss" in step.values][:count]


def apart(ours: Iterable[float], theirs: Iterable[float]) -> list[float]:
    """ppm, step by step."""
    return [1e6 * abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True)]


def loss_row(name: str, found: list[float], to: str) -> Row:
    """Whether losses agree with the bare loop's at every step."""
    worst = max(found)
    first = next((number for number, one in enumerate(found, 1) if one > AGREE), 0)
    cause = (
        f"measured: {found[0]:.3g} ppm apart at step 1, {found[first - 1]:.3g} at step {first}, the first one beyond"
    )
    return Row(
        f"{name}: {len(found)} losses apart from {to}", "ppm", worst,
        goal=f"at most {AGREE:g} ppm", met=worst <= AGREE, cause=cause,
    )  # fmt: skip


# --- tokens ---------------------------------------------------------------------------------------------------


def token_rows(name: str, ours: Ran, peer: str, theirs: Ran, times: float, limit: float | None) -> list[Row]:
    """Useful tokens of a second, by rounds; `limit`: what the share of padding alone would let one win."""
    rows = []
    for clock, of in (("", wall), (", CPU", cpu)):
        mine, other = (rate(ran, of) for ran in (ours, theirs))
        ratio = mine / other if mine and other else None
        row = Row(f"{name}{clock}", "tokens/s", mine, peer, other, ratio=ratio)
        if not clock:
            cause = theirs.words or _left_to_win(ours, theirs, limit)
            met = None if ratio is None else ratio >= times
            row = replace(row, goal=f"at least {times:g}x", met=met, cause=cause)
        rows.append(row)
    return rows


def rate(ran: Ran, of: Callable[[Step], float]) -> float | None:
    """Useful tokens of a second. A round is one figure: its steps have more or less to do."""
    if ran.words:
        return None
    return 1 / p20(sum(map(of, one.steps)) / useful(one.steps) for one in ran.rounds)


def useful(steps: Iterable[Step]) -> float:
    return sum(step.values["tokens"] for step in steps)


def _left_to_win(ours: Ran, theirs: Ran, limit: float | None) -> str:
    per_token = []
    for ran in (ours, theirs):
        tokens = useful(ran.counted)
        per_token.append({part: 1e6 * sum(s.parts[part] for s in ran.counted) / tokens for part in parts(ran)})
    mine, other = per_token
    told = ", ".join(f"{part} {mine[part]:.0f} and {other[part]:.0f}" for part in mine)
    share = "" if limit is None else f"the padding is all there is to win, {limit:.2f}x; "
    return f"{share}measured, µs of a useful token of ours and of the peer's: {told}"
