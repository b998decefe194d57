"""Where runs lie: on the site's scratch where it has one; and until when what lies there is safe."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from slurm.sites.expiry import days_left, expires
from slurm.sites.profile import Profile, Scratch

DEFAULT = "runs"
SOON = 14
"""Days; what expires within them is said before a job is queued."""
_MANY = 1000


def chosen(given: str, profile: Profile) -> Path:
    """`--runs-dir`, or ./runs where it is; else a folder on the site's scratch, which this shell's variables name."""
    scratch = _own(profile.scratch) if given == DEFAULT and not os.path.lexists(given) else None
    return scratch / "outlast" / "runs" if scratch else Path(given)


def link(given: str, folder: Path) -> None:
    """./runs leads to where `chosen` has put the runs, so that every verb finds them; said once."""
    here = Path(given)
    if here.resolve() != folder.resolve():
        folder.mkdir(parents=True, exist_ok=True)
        here.symlink_to(folder)
        print(f"runs lie on this site's scratch, in {folder}: ./{given} leads there (another: --runs-dir)")


def _own(scratch: Scratch | None) -> Path | None:
    """None: its path has a part that only its user knows, as <project>."""
    path = Path(os.path.expandvars(scratch.path)) if scratch else Path("<")
    return path if not re.search("[$<]", str(path)) and os.access(path, os.W_OK | os.X_OK) else None


def purge_days(path: Path, profile: Profile) -> int | None:
    """Days without an access after which the site removes what lies there; None: it does not, or nobody knows."""
    scratch = profile.scratch
    if scratch is None or scratch.purge_days is None or "$" in (form := os.path.expandvars(scratch.path)):
        return None
    pattern = re.sub(r"<\w+>", "[^/]+", re.sub(r"[^\w<>/-]", lambda found: re.escape(found[0]), form))
    return scratch.purge_days if re.match(rf"{pattern}(/|$)", str(path.resolve())) else None


def expiring(folders: Iterable[str], profile: Profile) -> list[str]:
    """Of what a run reads, what the site removes soon: a run that waits in the queue reads nothing."""
    out = []
    for folder in map(Path, folders):
        days = purge_days(folder, profile)
        left = days_left(_files(folder), days) if days else None
        if left is not None and left < SOON:
            out.append(f"{folder} {expires(left)}: {profile.name} removes what nobody reads for {days} days")
    return out


def _files(path: Path) -> list[Path]:
    """Those of a folder, not of the folders below it."""
    if path.is_file():
        return [path]
    with suppress(OSError):
        return [entry for entry in list(path.iterdir())[:_MANY] if entry.is_file()]
    return []
