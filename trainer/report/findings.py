"""What a proof says."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Finding:
    what: str
    ok: bool | None
    """None: it could not be checked."""
    text: str
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Proof:
    findings: list[Finding]
    notes: list[str]

    @property
    def ok(self) -> bool | None:
        """None: nothing is wrong, and not all could be checked."""
        verdicts = [finding.ok for finding in self.findings]
        return False if False in verdicts else None if None in verdicts else True

    @property
    def verdict(self) -> str:
        if self.ok:
            return "nothing was lost, and nothing was used twice"
        wrong = sum(len(finding.problems) for finding in self.findings)
        if self.ok is None:
            open_ones = ", ".join(finding.what.lower() for finding in self.findings if finding.ok is None)
            return f"nothing wrong was found; not checked: {open_ones}"
        return f"{wrong} {'problem' if wrong == 1 else 'problems'} found"
