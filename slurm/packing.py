"""This virtual environment as one archive, which every node of a job unpacks to its own disk; and the proof that it is
enough."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from durable import nonce, write_atomic
from settings import ConfigError

_OFFLINE = ("unshare", "--user", "--map-root-user", "--net")
"""Before a command: it runs in a network without any way out. Some login nodes do not allow it."""


def pack(archive: Path) -> str:
    """Returns what was done, in words. One that conda-pack has made is left as it is. Raises ConfigError."""
    note, prefix = archive.with_name(f"{archive.name}.json"), Path(sys.prefix)
    if archive.exists() and not note.exists():
        return f"{archive}: was not made by this command, and stays as it is"
    if sys.prefix == sys.base_prefix:
        raise ConfigError(f"archive={archive}: {sys.prefix} is no virtual environment: conda-pack -o {archive}")
    identity = _identity(prefix)
    if archive.exists() and json.loads(note.read_text(encoding="utf-8"))["identity"] == identity:
        return f"{archive}: packed already, and {prefix} has not changed"
    began, fresh = time.monotonic(), archive.with_name(f".{nonce()}-{archive.name}")
    archive.parent.mkdir(parents=True, exist_ok=True)
    argv = ["tar", "--create", "--auto-compress", f"--file={fresh}", f"--directory={prefix}", "."]
    try:
        if subprocess.run(argv).returncode:
            raise ConfigError(f"archive={archive}: tar could not write it: its own words stand above")
        size = fresh.stat().st_size
        fresh.rename(archive)
    finally:
        fresh.unlink(missing_ok=True)
    write_atomic(note, json.dumps({"identity": identity, "prefix": str(prefix), "base": sys.base_prefix}) + "\n")
    seconds = time.monotonic() - began
    return f"{archive}: {prefix} in {size / 1e9:.2f} GB, packed in {seconds:.0f} s; its nodes need {sys.base_prefix}"


def _identity(prefix: Path) -> str:
    """It changes with each package that is installed, removed or replaced."""
    found = sorted(prefix.glob("lib/python*/site-packages/*"))
    told = [f"{path.relative_to(prefix)} {path.stat().st_mtime_ns}" for path in found if path.name != "__pycache__"]
    return hashlib.sha256("\n".join([sys.version, *told]).encode()).hexdigest()


def prove(archive: Path, work: Sequence[str], environ: dict[str, str]) -> int:
    """`python WORK...` in the environment as a node unpacks it, without a network where that can be had. Returns its
    code."""
    with tempfile.TemporaryDirectory(prefix="outlast-") as folder:
        if subprocess.run(["tar", "--extract", f"--file={archive}", f"--directory={folder}"]).returncode:
            raise ConfigError(f"archive={archive}: tar cannot read it: its own words stand above")
        allowed = subprocess.run([*_OFFLINE, "true"], stderr=subprocess.DEVNULL).returncode == 0
        how = "without a network" if allowed else "with a network, which this host does not let us take away"
        print(f"{archive}: tried {how}", flush=True)
        environ = {**environ, "PATH": os.pathsep.join([f"{folder}/bin", environ["PATH"]])}
        return subprocess.run([*(_OFFLINE if allowed else ()), f"{folder}/bin/python", *work], env=environ).returncode
