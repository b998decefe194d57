"""Checks of the folders that a run writes to and reads from: room, quota, purges, and whether all nodes see them."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from durable import nonce
from slurm import commands
from slurm.doctor.case import Case
from slurm.doctor.finding import Finding, error, ok, warning
from slurm.sites.site import unix

GB = 1e9
LEAST_FREE, LITTLE_FREE = 1 * GB, 10 * GB
"""Bytes, where nobody knows how large a checkpoint is."""
LEAST_FILES, LITTLE_FILES = 1_000, 20_000
NEARLY = 0.9  # of a quota
SKEW = 60.0  # seconds
_QUOTA_SECONDS = 10
_IN_MEMORY = ("tmpfs", "ramfs")


def run_folder(case: Case) -> Iterator[Finding]:
    """It takes a file."""
    folder = standing(case.runs)
    file = folder / f".doctor-{nonce()}"
    try:
        with open(file, "wb") as out:
            out.write(b"\0" * (1 << 20))
            out.flush()
            os.fsync(out.fileno())
            ahead = os.fstat(out.fileno()).st_mtime - time.time()
    except OSError as failure:
        full = failure.errno in (errno.ENOSPC, errno.EDQUOT)
        mend = "make room" if full else "give another folder by --runs-dir"
        yield error(
            "run folder", f"{folder}: {failure.strerror}", "a run cannot write its state", f"{mend}; `df -h {folder}`"
        )
        return
    finally:
        with suppress(OSError):
            file.unlink(missing_ok=True)
    if abs(ahead) > SKEW:
        why = "files look newer or older than they are, to purges and to people"
        yield warning("run folder", f"the clock of {folder} is {ahead:+.0f} s from this host's", why, "tell the site")
    else:
        yield ok("run folder", f"{folder} takes files")


def room(case: Case) -> Iterator[Finding]:
    """Free space and files of the runs' folder and of the caches."""
    needed = _needed(case)
    for name, folder in folders(case).items():
        found = os.statvfs(folder)
        free = found.f_bavail * found.f_frsize
        least, little = (LEAST_FREE, LITTLE_FREE) if name != "runs" or not needed else needed
        said = f"{name} ({folder}): {free / GB:,.1f} GB are free"
        why = "a save that finds no room is dropped, and the run ends where it was last saved"
        if free < little:
            wants = f", {little / GB:,.1f} GB are wanted for its checkpoints" if needed and name == "runs" else ""
            told = error if free < least else warning
            yield told("free space", f"{said}{wants}", why, f"make room: `du -xsh {folder}/* | sort -h`, or --runs-dir")
        else:
            yield ok("free space", said)
        files = found.f_favail if found.f_files else LITTLE_FILES  # some file systems count none
        if files < LITTLE_FILES:
            told = error if files < LEAST_FILES else warning
            mend = f"remove what is not needed: `du --inodes -x {folder} | sort -n | tail`"
            yield told(
                "free files", f"{name} ({folder}): only {files:,} more files", "a run makes hundreds of files", mend
            )


def _needed(case: Case) -> tuple[float, float] | None:
    """Bytes of the newest checkpoint with the one being written, without which submit refuses, and of all that are kept
    with that one."""
    check = case.settings.get("checkpoint", {})
    kept = check.get("keep", 2) + check.get("keep_best", 0)
    return (case.checkpoint * 2, case.checkpoint * (kept + 1)) if case.checkpoint else None


def folders(case: Case) -> dict[str, Path]:
    """What is written to, each as far as it stands."""
    environ = case.environ
    cache = Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    named = {"runs": str(case.runs), "data cache": str(case.settings.get("data", {}).get("cache") or "")}
    named["Hugging Face cache"] = environ.get("HF_HOME") or str(cache / "huggingface")
    return {
        name: standing(Path(text)) for name, text in named.items() if text and (name == "runs" or Path(text).exists())
    }


def standing(folder: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.is_dir())


# --- quotas ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Quota:
    where: str
    used: float
    limit: float
    what: str
    """`GB` or `files`."""

    @property
    def share(self) -> float:
        return self.used / self.limit


def quota(case: Case) -> Iterator[Finding]:
    """What the site's own tools say of the file system that the runs lie on."""
    mount = mount_of(standing(case.runs))
    words = quota_command(mount)
    if words is None or shutil.which(words[0]) is None:
        yield ok("quota", f"no tool here tells of one on {mount.folder} ({mount.kind})")
        return
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=_QUOTA_SECONDS)
    except subprocess.TimeoutExpired:
        yield warning(
            "quota", f"{words[0]} has not answered", "nothing is known of it", f"ask later: `{' '.join(words)}`"
        )
        return
    ours = (mount.source, mount.folder)
    found = [one for one in parse_quota(done.stdout) if words[0] == "lfs" or one.where in ours]
    for one in found:
        said = f"{one.used:,.0f} of {one.limit:,.0f} {one.what} on {mount.folder} are used"
        if one.share < NEARLY:
            yield ok("quota", said)
        else:
            told = error if one.share >= 1 else warning
            yield told(
                "quota", said, "above it no checkpoint is written", f"make room on {mount.folder}: `{' '.join(words)}`"
            )
    if not found:
        yield ok("quota", f"{words[0]} names none on {mount.folder}")


def quota_command(mount: Mount) -> list[str] | None:
    if mount.kind == "lustre":
        return ["lfs", "quota", "-u", str(os.getuid()), mount.folder]
    return None if mount.kind in _IN_MEMORY else ["quota", "--no-wrap", "--raw-grace"]


def parse_quota(text: str) -> list[Quota]:
    """Lines of `quota` and of `lfs quota`: file system, then kB, soft and hard limit and grace; the same of files."""
    found = []
    joined = re.sub(r"^(\s*\S+)\n(?=\s+[\d\[])", r"\1 ", text, flags=re.MULTILINE)  # a long name has its own line
    for line in joined.splitlines():
        cells = line.split()
        numbers = [cell.strip("[]*") for cell in cells[1:]]
        if len(numbers) < 8 or not all(numbers[index].isdigit() for index in (0, 1, 2, 4, 5, 6)):
            continue
        for (used, soft, hard), unit, what in ((numbers[0:3], 1024 / GB, "GB"), (numbers[4:7], 1.0, "files")):
            limit = int(hard) or int(soft)
            if limit:
                found.append(Quota(cells[0], int(used) * unit, limit * unit, what))
    return found


# --- where they lie -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mount:
    folder: str
    kind: str
    source: str


def mount_of(path: Path) -> Mount:
    """The file system that a path lies on."""
    text = os.fsdecode(Path("/proc/self/mountinfo").read_bytes())
    rows = (line.split(" ") for line in text.split("\n") if line)  # anybody may call a mount what they like
    mounts = [Mount(_plain(row[4]), *row[row.index("-") + 1 : row.index("-") + 3]) for row in rows]
    above = [mount for mount in mounts if path.resolve().is_relative_to(mount.folder)]
    return max(enumerate(above), key=lambda pair: (len(pair[1].folder), pair[0]))[1]  # of two the later hides the first


def _plain(text: str) -> str:
    return re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), text)


def purge(case: Case) -> Iterator[Finding]:
    """Whether the site removes there what nobody has read for a while."""
    scratch = case.cluster.profile.scratch
    if scratch is None:
        return
    folder, days = os.path.expandvars(scratch.path), scratch.purge_days
    inside = "$" not in folder and case.runs.absolute().is_relative_to(folder)
    if inside and days:
        yield ok("purge", f"{case.runs} lies on scratch: what nobody has read for {days} days is removed there")
    elif not inside:
        yield ok("purge", f"{case.runs} is not on the site's scratch ({scratch.path})")


def shared(case: Case) -> Iterator[Finding]:
    """What lies in this host's memory no other host sees; of a disk only a job can tell (doctor --nodes 2)."""
    if not case.cluster.live:
        return
    places = {"runs": standing(case.runs), "Python": Path(sys.prefix), "code": Path(__file__)}
    hidden = {name: path for name, path in places.items() if mount_of(path).kind in _IN_MEMORY}
    if hidden and not _nodes_are_here():
        for name, path in hidden.items():
            why = "compute nodes see nothing of it, and the job ends at its start"
            yield warning(
                "shared", f"{name} ({path}) lies in this host's memory", why, "take a folder that all nodes share"
            )
    else:
        where = ", ".join(f"{name} on {mount_of(path).kind}" for name, path in places.items())
        yield ok("shared", f"{where}; --nodes 2 proves that nodes see them")


def _nodes_are_here() -> bool:
    """Whether all nodes are this very machine: it was booted when they were."""
    boot = re.search(r"^btime (\d+)$", Path("/proc/stat").read_text(), re.MULTILINE)
    booted = [unix(node.get("BootTime", "")) for node in commands.nodes()]
    return boot is not None and all(at is not None and abs(at - int(boot[1])) < 5 for at in booted)


FOLDERS = [run_folder, room, quota, purge, shared]
