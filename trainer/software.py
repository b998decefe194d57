"""`python -m trainer.software REQUIREMENT ...`: what of the ranks' Python a training needs, as JSON: one line."""

from __future__ import annotations

import json
import platform
import re
import sys
from importlib import metadata
from typing import Any


def packages(requirements: list[str]) -> list[dict[str, Any]]:
    """Of each `deepspeed>=0.18`: the name, the version that is there (null: none), whether it fits."""
    found = []
    for text in requirements:
        name, wanted = re.fullmatch(r"([\w.-]+)(.*)", text).groups()  # type: ignore[union-attr]
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            version = None
        fits = version is not None and _fits(version, wanted)
        found.append({"name": name, "wanted": wanted, "version": version, "fits": fits})
    return found


def _fits(version: str, wanted: str) -> bool:
    from packaging.specifiers import SpecifierSet  # a bare Python has none, but then it has no such version either

    return SpecifierSet(wanted).contains(version, prereleases=True)


def torch_build() -> dict[str, Any]:
    """Version, and the toolkit that it was built for: null and null for the CPU alone."""
    try:
        import torch
    except Exception as error:  # whatever a broken library raises
        return {"error": f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"}
    return {"version": torch.__version__, "cuda": torch.version.cuda, "hip": torch.version.hip}


if __name__ == "__main__":
    told = {"python": platform.python_version(), "machine": platform.machine(), "torch": torch_build()}
    print(json.dumps({**told, "packages": packages(sys.argv[1:])}))
