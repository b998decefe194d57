"""What a check finds, and how it is said."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

WIDTH = 100
EXITS = {"ok": 0, "warning": 1, "error": 2}


@dataclass(frozen=True)
class Finding:
    check: str
    """What was looked at, in a word or two."""
    level: Literal["ok", "warning", "error"]
    what: str
    why: str = ""
    """Why it matters."""
    mend: str = ""
    """The command that mends it, or who can."""


def ok(check: str, what: str) -> Finding:
    return Finding(check, "ok", what)


def warning(check: str, what: str, why: str, mend: str) -> Finding:
    return Finding(check, "warning", what, why, mend)


def error(check: str, what: str, why: str, mend: str) -> Finding:
    return Finding(check, "error", what, why, mend)


def exit_code(findings: Sequence[Finding]) -> int:
    """0: healthy. 1: warnings. 2: errors."""
    return max((EXITS[finding.level] for finding in findings), default=0)


def text(finding: Finding) -> str:
    """Lines for a person."""
    mark = {"ok": "ok", "warning": "warning", "error": "ERROR"}[finding.level]
    lines = [_wrapped(f"{mark:<9}{finding.check:<14}", finding.what)]
    for name, said in (("why", finding.why), ("mend", finding.mend)):
        if said:
            lines.append(_wrapped(f"{'':<9}{name:<14}", said))
    return "\n".join(lines)


def _wrapped(head: str, said: str) -> str:
    width = WIDTH - len(head)
    whole = textwrap.wrap(said, width, break_long_words=False, break_on_hyphens=False) or [""]
    return "\n".join(f"{head if not index else ' ' * len(head)}{line}" for index, line in enumerate(whole))


def verdict(findings: Sequence[Finding]) -> str:
    """The last line."""
    count = {level: sum(1 for finding in findings if finding.level == level) for level in EXITS}
    if not exit_code(findings):
        return f"healthy: {count['ok']} looks, nothing to mend"
    wrong = [f"{count[level]} {level}{'s' * (count[level] != 1)}" for level in ("error", "warning") if count[level]]
    return f"{', '.join(wrong)}, {count['ok']} ok"


def as_json(findings: Sequence[Finding]) -> dict[str, Any]:
    return {"exit_code": exit_code(findings), "findings": [asdict(finding) for finding in findings]}
