"""Tables of the generated pages, and parts of pages that are generated."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown; a bar inside of a cell ends none."""
    lines = (head, ["---"] * len(head), *rows)
    return "".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |\n" for line in lines)


def filled(text: str, begin: str, end: str, inside: str) -> str:
    """A page with `inside` between its two marks."""
    before, rest = text.split(begin)
    return before + begin + inside + end + rest.split(end)[1]
