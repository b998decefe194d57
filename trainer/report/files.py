"""The report in its forms: a page, a picture, Markdown, JSON."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from durable import write_atomic
from settings import ConfigError, read_json
from timeline import PARTS
from trainer.plan.measured import compared
from trainer.report import run as runs
from trainer.report import words
from trainer.report.charts import charts
from trainer.report.goodput import WORDS, split
from trainer.report.page import Report, page
from trainer.report.proof import proof
from trainer.report.run import Run

NAME = "report"


def made(run_dir: Path) -> Report:
    """Raises ConfigError when the folder is no run, or none that has begun."""
    run = runs.read(run_dir.resolve())
    plan, note = _plan(run)
    memory = next((row["planned"] for row in plan if row["unit"] == "GiB" and row["measured"] is not None), None)
    return Report(run, split(run), proof(run), charts(run, memory), plan, note, _provenance(run))


def write_html(run_dir: Path) -> tuple[Path, Report]:
    """Raises ConfigError; OSError where it cannot be written."""
    report = made(run_dir)
    target = report.run.path / f"{NAME}.html"
    write_atomic(target, page(report))
    return target, report


def _plan(run: Run) -> tuple[list[dict[str, Any]], str]:
    try:
        rows, source = compared(run.path, run.history)
        return [{**asdict(row), "error": row.error} for row in rows], source
    except (ConfigError, OSError) as error:
        return [], str(error)


def _provenance(run: Run) -> list[tuple[str, str]]:
    resumed = run.history.told("resume")
    used: dict[str, str] = next((event["versions"] for event in reversed(resumed) if "versions" in event), {})
    newest, job = run.attempts[-1], run.job
    found = [
        ("folder", str(run.path)),
        ("started from", str(resumed[0].get("from") or "new or pretrained weights") if resumed else ""),
        ("software of the ranks", ", ".join(f"{name} {one}" for name, one in used.items())),
        ("code", _code(run.path)),
        ("data", _data(run)),
        ("cluster", ", ".join(str(job[key]) for key in ("cluster", "partition", "account") if job.get(key))),
        ("hosts of the last attempt", ", ".join(newest.hosts)),
        ("weights of the export", str((run.done or {}).get("sha256", ""))),
        ("report by", f"{_version()}Python {platform.python_version()}"),
    ]
    return [(key, value) for key, value in found if value]


def _code(run_dir: Path) -> str:
    try:
        return f"sha256 {read_json(run_dir / 'code.json')['sha256']}"
    except (ConfigError, OSError, KeyError, TypeError):
        return ""


def _data(run: Run) -> str:
    """The fingerprint, as the newest checkpoint that still stands has it."""
    manifests = sorted((run.path / "checkpoints").glob("step-*/MANIFEST.json"))
    try:
        return f"fingerprint {read_json(manifests[-1])['data']}" if manifests else ""
    except (ConfigError, OSError, KeyError, TypeError):
        return ""


def _version() -> str:
    try:
        return f"outlast {version('outlast')}, "
    except PackageNotFoundError:  # it runs from its checkout
        return ""


# --- other forms -----------------------------------------------------------------------------------------


def as_json(report: Report) -> str:
    run, stands = report.run, words.standing(report.run)
    tree: dict[str, Any] = {
        "run": run.name,
        "state": stands.word,
        "why": stands.why,
        "step": run.step,
        "of": run.total,
        "hours": {"value": words.device_hours(run, report.where), "unit": words.hours_unit(run)},
        "time": report.where.as_json(),
        "proof": {
            "ok": report.proof.ok,
            "findings": [finding.__dict__ for finding in report.proof.findings],
            "notes": report.proof.notes,
        },
        "attempts": [
            {key: value for key, value in attempt.__dict__.items() if key != "starter"} for attempt in run.attempts
        ],
        "plan": report.plan,
        "efficiency": words.efficiency(run, report.where),
        "provenance": dict(report.provenance),
    }
    return json.dumps(tree, indent=2)


def as_markdown(report: Report) -> str:
    """For a wiki or a merge request."""
    run, where, stands = report.run, report.where, words.standing(report.run)
    parts = zip(PARTS, where.parts.tolist(), strict=True)
    marks = {True: "yes", False: "**NO**", None: "not checked"}
    lines = [
        f"# {run.name}: {stands.word}, {words.progress(run)}",
        "",
        f"{stands.why}.{f' Next: `{stands.next}`.' if stands.next else ''}",
        "",
        words.efficiency(run, where),
        "",
        "| time | | share |",
        "|---|---:|---:|",
        *(f"| {WORDS[part]} | {words.span(seconds)} | {seconds / (where.wall or 1):.1%} |" for part, seconds in parts),
        "",
        "| checked | holds | |",
        "|---|---|---|",
        *(
            f"| {one.what} | {marks[one.ok]} | {_cell(' '.join([one.text, *one.problems]))} |"
            for one in report.proof.findings
        ),
        "",
        "| attempt | took | steps | ended by |",
        "|---:|---:|---|---|",
        *(
            f"| {one.number} | {words.span(one.seconds)} | {one.first_step:,} to {one.last_step:,} | "
            f"{words.CAUSES.get(one.cause, one.cause)}{f': {_cell(one.reason)}' if one.reason else ''} |"
            for one in run.attempts
        ),
        "",
        *(f"- {key}: `{value}`" for key, value in report.provenance),
    ]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
