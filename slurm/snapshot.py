"""Code as it was at submission: a copy in the run folder, so that an edit cannot change a run between two attempts."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from durable import nonce, write_atomic
from settings import ConfigError

ROOT = Path(__file__).parent.parent
OURS = ("settings.py", "durable.py", "timeline.py", "flags.py", "launch.py", "slurm", "trainer", "envs")

MAX_BYTES, MAX_FILES = 64 << 20, 5000
# What is no code, where no .gitignore says so; environments are known by what lies in them.
_LEFT_OUT = {
    ".git",
    ".hg",
    ".svn",
    "__pycache__",
    "node_modules",
    "runs",
    "data",
    "datasets",
    "checkpoints",
    "outputs",
    "wandb",
}
_ENVIRONMENT = ("pyvenv.cfg", "conda-meta")
_CODE = (".py", ".sh", ".yaml", ".yml", ".toml", ".cfg", ".ini")
_WORDS = (*_CODE, ".json")
_TEXTS = (*_WORDS, ".txt", ".jinja")
"""_WORDS: suffixes of the words of a command that name code, and so are taken from the copy."""


@dataclass(frozen=True)
class CommandCode:
    """The code of a foreign command: the folder it lies in, and the files of it that are copied."""

    root: Path
    files: list[Path]
    """Relative to the root."""

    @property
    def size(self) -> int:
        """Bytes."""
        return sum((self.root / file).stat().st_size for file in self.files)


# --- ours -----------------------------------------------------------------------------------------------


def copy_ours(run_dir: Path) -> None:
    """Our own code to RUN_DIR/code, in place of what lies there, and its hash to RUN_DIR/code.json."""
    files = [Path(name) for name in OURS if (ROOT / name).is_file()]
    files += [
        path.relative_to(ROOT)
        for name in OURS
        for path in sorted((ROOT / name).rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    ]
    digest = _copy(ROOT, files, run_dir / "code")
    write_atomic(run_dir / "code.json", json.dumps({"sha256": digest, "files": len(files), "time": time.time()}) + "\n")


def link_ours(run_dir: Path) -> None:
    """The code of the folder above, a sweep's, in place of a copy: many runs would be many thousand files."""
    for name in ("code", "code.json"):
        (run_dir / name).symlink_to(Path("..") / name)


def code_environment(code: Path) -> dict[str, str]:
    """This process's environment, for a child that runs our code from this folder."""
    paths = [str(code), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


# --- a foreign command's ----------------------------------------------------------------------------------


def of_command(command: Sequence[str], cwd: Path) -> CommandCode | None:
    """The code that a command runs: the folder of its script, or the working folder's own module.

    Inside a git repository it is the whole repository without what .gitignore names. None: nothing of it lies in a
    folder of the user's. Raises ConfigError when that is more than code can be.
    """
    start = _folder_of_code(command, cwd)
    if start is None:
        return None
    root = next((path for path in (start, *start.parents) if (path / ".git").exists()), None)
    files = _git_files(root) if root else None
    if root is None or files is None:
        root, files = start, _walked(start)
    code = CommandCode(root, files)
    if code.size > MAX_BYTES:
        raise _too_large(root, files, f"{code.size / (1 << 20):.1f} MiB, more than {MAX_BYTES >> 20}")
    return code


def copied(command: Sequence[str], code: CommandCode, target: Path, cwd: Path) -> list[str]:
    """The command with its code taken from the copy in `target`; other words, as data and outputs, stay as typed."""
    out = []
    for word in command:
        path = _inside(cwd / word, code.root) if word.endswith(_WORDS) and (cwd / word).is_file() else None
        out.append(str(target / path) if path in code.files else word)
    return out


def module_path(command: Sequence[str], code: CommandCode, target: Path, cwd: Path) -> dict[str, str]:
    """What makes `python -m MODULE` of the working folder import from the copy: cwd must not come before it."""
    path = _inside(cwd, code.root)
    if _local_module(command, cwd) is None or path is None:
        return {}
    paths = [str(target / path), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}


def copy_command(code: CommandCode, target: Path) -> str:
    """Returns the sha256 of what was copied."""
    return _copy(code.root, code.files, target)


def _folder_of_code(command: Sequence[str], cwd: Path) -> Path | None:
    scripts = [cwd / word for word in command if word.endswith((".py", ".sh")) and (cwd / word).is_file()]
    if scripts:
        return scripts[0].resolve().parent
    return cwd if _local_module(command, cwd) else None


def _local_module(command: Sequence[str], cwd: Path) -> str | None:
    """The module of `python -m MODULE` when the working folder has it."""
    if "-m" not in command[1:-1]:
        return None
    module = command[command.index("-m") + 1].split(".")[0]
    return module if (cwd / module).is_dir() or (cwd / f"{module}.py").is_file() else None


def _git_files(root: Path) -> list[Path] | None:
    """Tracked and new files of a repository, and of those inside it (submodules, clones), without what it ignores; None
    where git does not answer. Of folders that as a rule hold no code, what is tracked and is code or its settings."""
    try:
        tracked, new = (_listed(root, kind) for kind in ("--cached", "--others"))
    except (OSError, subprocess.SubprocessError):
        return None
    code = {name for name in tracked if name.suffix in _CODE}
    names = [name for name in (*tracked, *new) if name in code or not _LEFT_OUT.intersection(name.parts)]
    inside = (name for name in names if (root / name / ".git").exists())
    names += [name / file for name in inside for file in _git_files(root / name) or ()]
    files = sorted(name for name in names if (root / name).is_file())
    if len(files) > MAX_FILES:
        raise _too_large(root, files, f"{len(files):,} files, more than {MAX_FILES:,}")
    return files


def _listed(root: Path, kind: str) -> list[Path]:
    # A repository that came in an archive is this user's own to git, and its configuration may name programs to run.
    argv = ["git", "-C", str(root), "-c", "core.fsmonitor=false", "ls-files", "-z", kind, "--exclude-standard"]
    listed = subprocess.run(argv, capture_output=True, timeout=60, check=True).stdout
    return [Path(os.fsdecode(name)) for name in listed.split(b"\0") if name]


def _walked(root: Path) -> list[Path]:
    """Texts below a folder that is in no repository, without environments and what is no code."""
    files: list[Path] = []
    for folder, folders, names in os.walk(root):
        here = Path(folder)
        folders[:] = sorted(
            name
            for name in folders
            if name not in _LEFT_OUT
            and not name.startswith(".")
            and not any((here / name / mark).exists() for mark in _ENVIRONMENT)
        )
        files += [(here / name).relative_to(root) for name in sorted(names) if name.endswith(_TEXTS)]
        if len(files) > MAX_FILES:
            raise _too_large(root, files, f"more than {MAX_FILES:,} files")
    return files


def _too_large(root: Path, files: Iterable[Path], how: str) -> ConfigError:
    sizes: Counter[str] = Counter()
    for file in files:
        sizes[file.parts[0]] += (root / file).stat().st_size
    largest = ", ".join(f"{name} ({size / (1 << 20):.1f} MiB)" for name, size in sizes.most_common(3))
    return ConfigError(
        f"the code below {root} has {how}; largest: {largest}: name what is no code in .gitignore, or run it where it "
        f"lies: job.snapshot=false"
    )


def _inside(path: Path, root: Path) -> Path | None:
    path = path.resolve()
    return path.relative_to(root.resolve()) if path.is_relative_to(root.resolve()) else None


# --- both -----------------------------------------------------------------------------------------------


def _copy(root: Path, files: Iterable[Path], target: Path) -> str:
    """Copy files (relative to `root`) to a fresh folder that takes the target's place. Returns their sha256.

    Folders' modes are not copied: a checkout on a read-only path would make some that cannot be written or removed.
    """
    import hashlib  # with OpenSSL: 3 ms, which a dry run has no use for

    fresh = target.with_name(f".{target.name}-{nonce()}")
    digest, allowed = hashlib.sha256(), ~_umask()
    fresh.mkdir()
    for file in files:
        content = (root / file).read_bytes()
        digest.update(f"{file}\0{len(content)}\0".encode(errors="surrogateescape") + content)
        (fresh / file).parent.mkdir(parents=True, exist_ok=True)
        (fresh / file).write_bytes(content)
        mode = (root / file).stat().st_mode & 0o777 | 0o600  # what is private stays so in a run that is shared
        (fresh / file).chmod(mode & allowed)
    if target.is_symlink():  # of a run of a sweep: from now on its code is its own
        target.unlink()
    if target.exists():
        old = fresh.with_name(f"{fresh.name}.old")
        target.rename(old)
        shutil.rmtree(old)
    fresh.rename(target)
    return digest.hexdigest()


def _umask() -> int:
    current = os.umask(0o077)
    os.umask(current)
    return current
