"""The report as a page: what a person wants to know first stands first. No script, no request."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from timeline import PARTS, QUEUE
from trainer.records.history import Floats
from trainer.report import words
from trainer.report.charts import Chart
from trainer.report.findings import Finding, Proof
from trainer.report.goodput import WORDS, Split
from trainer.report.run import Attempt, Run
from trainer.report.svg import figure
from trainer.report.words import span, when

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
LAST = 40
"""Attempts in the timeline; the table has all."""


@dataclass(frozen=True)
class Report:
    """All that a report says."""

    run: Run
    where: Split
    proof: Proof
    charts: list[Chart]
    plan: list[dict[str, Any]]
    """Rows: what, unit, planned, measured, error."""
    plan_note: str
    """Where the plan's speed is from, or why there is none."""
    provenance: list[tuple[str, str]]


def page(report: Report) -> str:
    run = report.run
    stands = words.standing(run)
    css = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    body = [
        f"<header><h1>{escape(run.name)}</h1>"
        f'<span class="badge {stands.tone}">{escape(stands.word)}</span>'
        f'<span class="when">{escape(words.progress(run))} &middot; written {when(run.now)}</span></header>',
        _cards(report, stands),
        _plots([chart for chart in report.charts if chart.key == "loss"]),
        "<h2>Where the time went</h2>",
        _time(report.where),
        "<h2>Attempts</h2>",
        _timeline(report.where),
        _attempts(report),
        "<h2>Proof</h2>",
        _proof(report.proof),
        "<h2>Training</h2>",
        _plots([chart for chart in report.charts if chart.key != "loss"]),
        "<h2>Plan against measured</h2>",
        _plan(report),
        "<h2>For a report on the allocation</h2>",
        f'<p id="efficiency">{escape(words.efficiency(run, report.where))}</p>',
        "<h2>Provenance</h2>",
        _facts(report),
        _config(run),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{escape(run.name)}: {escape(stands.word)}</title><style>\n{css}</style></head>\n"
        f"<body>\n{chr(10).join(filter(None, body))}\n</body></html>\n"
    )


# --- in ten seconds -------------------------------------------------------------------------------------


def _cards(report: Report, stands: words.Standing) -> str:
    run, where, proof = report.run, report.where, report.proof
    loss = next((chart.curves for chart in report.charts if chart.key == "loss"), [])
    losses = "; ".join(f"{one.name} loss {one.mean[-1]:.4g}" for one in loss if one.style >= 0)
    next_line = f" <code>{escape(stands.next)}</code>" if stands.next else ""
    tone = {True: "good", False: "bad", None: ""}[proof.ok]
    again = run.done_again
    lost = f"{again:,} steps were done again after an interruption" if again else "no step had to be done again"
    cost = (
        f"{where.goodput:.0%} of it in steps that count (goodput); {span(where.wall)} in all, "
        f"{span(float(where.parts[QUEUE]))} of it without nodes"
    )
    cards = [
        (stands.tone, "How it stands", words.progress(run), escape(losses)),
        (
            stands.tone,
            "Now" if stands.word == "running" else "Why it stopped",
            stands.word,
            escape(stands.why) + next_line,
        ),
        ("", "What it cost", f"{words.device_hours(run, where):,.3g} {words.hours_unit(run)}", escape(cost)),
        (tone, "Was anything lost?", proof.verdict[0].upper() + proof.verdict[1:], escape(lost)),
    ]
    shown = (
        f'<div class="card {tone}"><h3>{escape(head)}</h3><strong>{escape(strong)}</strong><p>{text}</p></div>'
        for tone, head, strong, text in cards
    )
    return f'<div class="cards">{"".join(shown)}</div>'


def _plots(charts: list[Chart]) -> str:
    drawn = "".join(map(figure, charts))
    return f'<div class="plots">{drawn}</div>' if drawn else ""


# --- time ------------------------------------------------------------------------------------------------


def _time(where: Split) -> str:
    wall = where.wall or 1.0
    parts = list(zip(PARTS, where.parts.tolist(), strict=True))
    rows = [
        [f'<span class="swatch {part}"></span>{WORDS[part]}', span(seconds), f"{seconds / wall:.1%}"]
        for part, seconds in parts
    ]
    rows.append(["<b>in all</b>", f"<b>{span(where.wall)}</b>", f"<b>{sum(s for _, s in parts) / wall:.1%}</b>"])
    notes = [
        f"<p>Goodput <b>{where.goodput:.1%}</b>: the steps' share of the {span(where.allocated)} with nodes. With the "
        f"queue in the count: <b>{float(where.parts[0]) / wall:.1%}</b>.</p>"
    ]
    if where.waited >= 0.001 * wall:
        notes.append(f"<p>{span(where.waited)} of the steps had to wait for data.</p>")
    bar, own = _bar(parts, 0.0, wall, "whole"), _bar(parts[:QUEUE], 0.0, where.allocated or 1.0, "whole")
    notes.append(f"<p>Of the time with nodes:</p>{own}")
    return f'{bar}<div class="split"><div>{_table([], rows, (1, 2))}</div><div>{"".join(notes)}</div></div>'


def _bar(parts: Iterable[tuple[str, float]], begin: float, whole: float, kind: str = "") -> str:
    pieces = []
    for part, seconds in parts:
        if seconds > 0:
            pieces.append(
                f'<i class="{part}" style="left:{begin / whole:.3%};width:{seconds / whole:.3%}" '
                f'title="{WORDS[part]}: {span(seconds)}"></i>'
            )
        begin += seconds
    return f'<div class="bar {kind}">{"".join(pieces)}</div>'


def _timeline(where: Split) -> str:
    """The last attempts, a row each, along the time with nodes: a long queue would leave nothing to see."""
    rows: list[tuple[Attempt, Floats, float]] = []
    before, begin = np.zeros(len(PARTS)), 0.0
    for spell in where.spells:
        if spell.attempt is None:
            before = spell.parts
            continue
        rows.append((spell.attempt, before + spell.parts, begin))
        begin += _with_nodes(before + spell.parts)
        before = np.zeros(len(PARTS))
    shown = rows[-LAST:]
    first = shown[0][2]
    drawn = "".join(_row(attempt, parts, start - first, (begin - first) or 1.0) for attempt, parts, start in shown)
    note = f"The last {LAST} of {len(rows)}; " if len(rows) > LAST else ""
    note += (
        f"along the {span(begin - first)} with nodes; each begins with its start, and work that was lost comes last."
    )
    return f'<div class="spells">{drawn}</div><p class="note">{note[0].upper()}{note[1:]}</p>'


_IN_A_ROW = ("start", "steps", "evaluation", "saves", "lost", "leaving")


def _with_nodes(parts: Floats) -> float:
    return float(parts.sum() - parts[QUEUE])


def _row(attempt: Attempt, parts: Floats, begin: float, whole: float) -> str:
    """`parts`: of the attempt, and of the time since the one before."""
    named = dict(zip(PARTS, parts.tolist(), strict=True))
    bar = _bar([(part, named[part]) for part in _IN_A_ROW], begin, whole)
    cause = words.CAUSES.get(attempt.cause, attempt.cause)
    queue = f", after {span(named['queue'])} without nodes" if named["queue"] >= 1 else ""
    reason = f": {escape(attempt.reason)}" if attempt.reason else ""
    said = f"steps {attempt.first_step:,}&ndash;{attempt.last_step:,}{queue}"
    return f'<span>{attempt.number}</span>{bar}<span class="why"><b>{escape(cause)}</b>{reason}; {said}</span>'


def _attempts(report: Report) -> str:
    ends = report.run.history.ends()
    rows = []
    for attempt in report.run.attempts:
        cut = max(0, attempt.last_step - max(attempt.first_step, ends.get(attempt.number, attempt.last_step)))
        shape = f"{attempt.nodes} x {attempt.ranks // attempt.nodes} {attempt.device}"
        cause = words.CAUSES.get(attempt.cause, attempt.cause)
        said = f"{escape(cause)}{f': {escape(attempt.reason)}' if attempt.reason else ''}"
        times = [when(attempt.start), span(attempt.seconds)]
        steps = [f"{attempt.first_step:,}", f"{attempt.last_step:,}", f"{cut:,}"]
        rows.append([str(attempt.number), escape(attempt.job), *times, *steps, escape(shape), said])
    head = ["", "job", "began", "took", "from step", "to", "done again", "nodes x ranks", "ended by"]
    table = f'<div class="wide">{_table(head, rows, (0, 3, 4, 5, 6))}</div>'
    return f"<details><summary>all {len(rows)} attempts as a table</summary>{table}</details>"


# --- the rest --------------------------------------------------------------------------------------------


def _proof(proof: Proof) -> str:
    notes = "".join(f"<li>{escape(note)}</li>" for note in proof.notes[:LAST])
    more = f"<details><summary>what was seen and is no fault</summary><ul>{notes}</ul></details>" if notes else ""
    return f'<ul class="proof">{"".join(map(_finding, proof.findings))}</ul>{more}'


def _finding(finding: Finding) -> str:
    tone = {True: "good", False: "bad", None: ""}[finding.ok]
    problems = "".join(f"<li>{escape(problem)}</li>" for problem in finding.problems)
    listed = f"<ul>{problems}</ul>" if problems else ""
    return f'<li class="{tone}"><b>{escape(finding.what)}</b>: {escape(finding.text)}{listed}</li>'


def _plan(report: Report) -> str:
    if not report.plan:
        return f"<p>Nothing to compare: {escape(report.plan_note)}</p>"
    rows = []
    for row in report.plan:
        measured = "not told" if row["measured"] is None else f"{row['measured']:.4g} {row['unit']}"
        error = "" if row["error"] is None else f"{row['error']:+.1%}"
        rows.append([escape(row["what"]), f"{row['planned']:.4g} {row['unit']}", measured, error])
    table = _table(["", "planned", "measured", "error"], rows, (1, 2, 3))
    return f'{table}<p class="note">the plan\'s speed: {escape(report.plan_note)}</p>'


def _facts(report: Report) -> str:
    rows = ([escape(key), f"<code>{escape(value)}</code>"] for key, value in report.provenance)
    return f'<div class="facts">{_table([], rows, ())}</div>'


def _config(run: Run) -> str:
    if not run.config:
        return ""
    return f"<details><summary>the whole config</summary><pre>{escape(run.config)}</pre></details>"


def _table(head: list[str], rows: Iterable[list[str]], numbers: tuple[int, ...]) -> str:
    """Of cells that are HTML; `numbers`: columns that stand at the right."""

    def cells(kind: str, row: list[str]) -> str:
        marked = ((' class="n"' if index in numbers else "", cell) for index, cell in enumerate(row))
        return "".join(f"<{kind}{mark}>{cell}</{kind}>" for mark, cell in marked)

    top = f"<thead><tr>{cells('th', head)}</tr></thead>" if head else ""
    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f"<table>{top}<tbody>{body}</tbody></table>"
