"""Checks of the ranks' Python, and of what the recipe names, on the login node: the trainer's half is asked."""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from slurm.doctor.case import Case
from slurm.doctor.finding import Finding, error, ok, warning
from slurm.snapshot import ROOT, code_environment
from slurm.step import enter

SECONDS = 300  # a first import over a slow file system takes minutes
_PYPROJECT = ROOT / "pyproject.toml"


def python(case: Case) -> Iterator[Finding]:
    """It starts, and imports torch; what the recipe's engine needs is there; it is built for the site's GPUs."""
    told = ask(case, "trainer.software", *requirements(case))
    if told.returncode:
        why = "no rank starts, and each attempt costs a place in the queue"
        mend = f"make setup, or name another by job.rank_python ({case.job.python})"
        yield error("python", last_line(told), why, mend)
        return
    found = json.loads(told.stdout.splitlines()[-1])
    yield ok("python", f"{case.job.python} is {found['python']} on {found['machine']}")
    yield from _packages(found["packages"])
    yield from _torch(case, found["torch"])
    yield from _machine(case, found["machine"])


def _packages(found: list[dict[str, Any]]) -> Iterator[Finding]:
    for one in (one for one in found if not one["fits"]):
        what = f"{one['name']} is {one['version'] or 'not there'}, {one['wanted'] or 'any version'} is needed"
        mend = f"pip install '{one['name']}{one['wanted']}'"
        yield error("packages", what, "the recipe's engine does not start without it", mend)
    if all(one["fits"] for one in found):
        yield ok("packages", ", ".join(f"{one['name']} {one['version']}" for one in found))


def _torch(case: Case, found: dict[str, Any]) -> Iterator[Finding]:
    """Its build against the profile's GPUs, where a profile names some."""
    if "error" in found:
        yield error(
            "torch", f"it cannot be imported: {found['error']}", "no rank starts", "install it anew: make setup"
        )
        return
    build = f"CUDA {found['cuda']}" if found["cuda"] else f"ROCm {found['hip']}" if found["hip"] else "the CPU alone"
    said, profile = f"{found['version']}, built for {build}", case.cluster.profile
    kind = profile.gpu or profile.gpu_model
    amd = kind.lower().startswith("mi")
    if kind and not found["hip" if amd else "cuda"]:
        wanted = "ROCm" if amd else "CUDA"
        mend = f"install a torch that is built for {wanted} (pytorch.org/get-started), or load the site's own module"
        yield error("torch", f"{said}; {profile.name} has {kind}", "the ranks would find no GPU", mend)
    else:
        yield ok("torch", said)


def _machine(case: Case, machine: str) -> Iterator[Finding]:
    wanted = case.cluster.profile.architecture
    if wanted not in ("unknown", machine):
        why = "programs of one do not run on the other"
        mend = "build the environment on a compute node (srun --pty), or take a container for it"
        yield warning(
            "python", f"it runs on {machine}, the nodes of {case.cluster.profile.name} are {wanted}", why, mend
        )


def requirements(case: Case) -> list[str]:
    """Of what this recipe imports."""
    names, settings = ["torch", "transformers", "safetensors"], case.settings
    if settings.get("engine", {}).get("kind") == "deepspeed":
        names.append("deepspeed")
    if settings.get("train", {}).get("kernels"):
        names.append("liger-kernel")
    if lora := settings.get("lora"):
        names += ["peft", "bitsandbytes"] if lora.get("quantize") else ["peft"]
    known = {re.split(r"[^\w-]", text)[0]: text for text in _versions()}
    return [known[name] for name in names]


def _versions() -> list[str]:
    """What the project asks for, also for its extras: from its checkout, else from its wheel."""
    if not _PYPROJECT.is_file():
        return [text.partition(";")[0].strip() for text in metadata.requires("outlast") or ()]
    project = tomllib.loads(_PYPROJECT.read_text(encoding="utf-8"))["project"]
    return [*project["dependencies"], *(text for extra in project["optional-dependencies"].values() for text in extra)]


def offline(case: Case) -> Iterator[Finding]:
    """Model, tokenizer and data are there, and nothing would be fetched."""
    if case.config is None:
        return
    case.runs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".doctor-", dir=case.runs) as folder:
        path = Path(folder).resolve() / "config.yaml"
        path.write_text(case.config, encoding="utf-8")
        told = ask(case, "trainer.prepare", str(path), "--check")
    if told.returncode:
        why = "compute nodes often have no internet, and never tokenize"
        level = warning if " is not prepared in " in last_line(told) else error  # submit prepares it first
        yield level("offline files", last_line(told), why, "launch.py prepare RECIPE, when what is named is there")
    else:
        yield ok("offline files", "model, tokenizer and data are there, and nothing would be fetched")


def ask(case: Case, module: str, *words: str) -> subprocess.CompletedProcess[str]:
    """A module of the trainer's in the ranks' Python, as far as this host has it."""
    job = case.job
    argv = [*enter(job.rank_command, case.runs, job.binds), job.python, "-P", "-m", module, *words]
    env = {**code_environment(ROOT), **job.environment}
    try:
        return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=SECONDS)
    except (OSError, subprocess.TimeoutExpired) as failure:
        return subprocess.CompletedProcess(argv, 1, "", f"{argv[0]}: {getattr(failure, 'strerror', None) or failure}")


def last_line(told: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in told.stderr.splitlines() if line.strip()]
    return lines[-1].removeprefix("outlast: ") if lines else f"exit {told.returncode}, without a word"


SOFTWARE = [python, offline]
