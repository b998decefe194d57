"""Rows B1 to B10 of the GPU scoreboard on one H100 or H200, within ten minutes; without a GPU the same code in a
reduced form, which proves the script and measures nothing.

    python -m benchmarks.gpu [--only B4] [--out FILE] [--budget SECONDS]

Parts run in order of importance, each in a process of its own; the file is written after every figure.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine
from benchmarks.gpu import limits, memory, offload, optimizer, packing, saving, speed
from benchmarks.gpu.child import Broken, Tell, reason, told
from benchmarks.gpu.clocks import Clocks, devices, visible
from benchmarks.gpu.figures import REDUCED, Figure, figure_of, shown, tree
from benchmarks.gpu.place import Place
from durable import write_atomic

RESULTS = Path(__file__).parents[1] / "results"
CONFIG_ERROR = 78
WITHIN, BUDGET = 570.0, 45.0
LEAST = 10.0
"""Seconds under which no part is begun."""
PACKAGES = ("torch", "transformers", "accelerate", "deepspeed", "liger-kernel", "triton", "nvidia-nccl-cu13", "numpy")


@dataclass(frozen=True)
class Part:
    row: str
    name: str
    work: Callable[[Place], None]
    share: float = 1.0
    """Of the budget."""


PARTS = [
    *(Part("B1", name, partial(speed.throughput, name), 1.2) for name in speed.CASES),
    Part("B3", "recompute", speed.recomputing, 0.8),
    Part("B10", "optimizer", optimizer.stepping),
    Part("B4", "loss", memory.large_vocabulary),
    Part("B5", "packing", packing.packed),
    Part("B2", "peaks", memory.peaks),
    Part("B6", "save", saving.saves, 1.5),
    Part("B7", "resume", saving.resumes, 1.5),
    Part("B8", "compile 1B", partial(speed.compiling, "1B"), 1.6),
    Part("B9", "offload", offload.offloaded, 1.5),
    Part("B9", "DeepSpeed", offload.deepspeeds),
    Part("B8", "compile 8B", partial(speed.compiling, "8B")),
]


def main(argv: list[str]) -> int:
    args = parser().parse_args(argv)
    parts = [part for part in PARTS if not args.only or part.row in args.only]
    if unknown := sorted(set(args.only) - {part.row for part in PARTS}):
        return refuse(f"--only {unknown[0]}: there is no such row; there are B1 to B10")
    os.environ |= {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": visible()}
    # Who only asks for a GPU does not touch the driver, which no fork could then use; and no thread is there at a fork.
    os.environ |= {"PYTORCH_NVML_BASED_CUDA_CHECK": "1", "TOKENIZERS_PARALLELISM": "false"}
    folder = Path(tempfile.mkdtemp(prefix="outlast-gpu-", dir=args.scratch))
    try:
        with Clocks(folder / "clocks.csv") as clocks:
            ends = time.monotonic() + args.within
            preload()
            found = next(told(limits.measured, min(ends, time.monotonic() + 120), folder / "limits.log"))
            record = opened(args.out, found)
            if record is None:
                return refuse(f"{args.out} holds the record of another device or version: give another --out")
            run_all(parts, record, Runs(args, folder, ends, clocks, found))
    except Broken as error:
        print(f"benchmarks.gpu: the device cannot be used: {error}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(shown([figure_of(kept) for kept in record["rows"]]))
    print(f"written to {args.out}")
    return 0


def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__, allow_abbrev=False)
    out.formatter_class = argparse.RawDescriptionHelpFormatter
    today = RESULTS / f"{time.strftime('%Y-%m-%d')}-gpu.json"
    out.add_argument("--out", type=Path, default=today, metavar="FILE", help="rows that it has already are kept")
    out.add_argument("--only", action="append", default=[], metavar="ROW", help="B1 to B10; may be given again")
    out.add_argument("--budget", type=float, default=BUDGET, metavar="SECONDS", help="of a part (default: %(default)g)")
    out.add_argument("--within", type=float, default=WITHIN, metavar="SECONDS", help="of all (default: %(default)g)")
    out.add_argument("--attention", default="auto", help="model.attention of Outlast's models (default: auto)")
    out.add_argument("--scratch", type=Path, help="folder for checkpoints (45 GB); default: the system's temporary one")
    return out


def refuse(text: str) -> int:
    print(f"benchmarks.gpu: {text}", file=sys.stderr)
    return CONFIG_ERROR


def preload() -> None:
    """What all parts import, before any process or device."""
    import transformers.models.llama.modeling_llama  # noqa: F401

    gc.collect()
    gc.freeze()  # what the children clear away is their own


# --- the record -------------------------------------------------------------------------------------------


def opened(file: Path, found: dict[str, Any]) -> dict[str, Any] | None:
    """The record in `file` if it is of this device and these versions, or a new one; None: it is of others."""
    fresh = {
        "mode": REDUCED if found["reduced"] else "full",
        "device": {**found["device"], **devices()},
        "versions": versions(),
        "machine": {"cpu": machine._cpu(), "cores": len(os.sched_getaffinity(0)), "load": machine.load()},
        "limits": found["limits"],
        "rows": [],
    }
    if not file.exists():
        return fresh
    kept: dict[str, Any] = json.loads(file.read_text())
    if all(kept[key] == fresh[key] for key in ("mode", "device", "versions")):
        return {**fresh, "rows": kept["rows"]}
    return fresh if kept["mode"] == REDUCED == fresh["mode"] else None


def versions() -> dict[str, str]:
    """Of this very Python's packages: nothing is installed for the measurement."""
    found = {"python": platform.python_version(), "system": f"{platform.system()} {platform.release()}"}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return {"outlast": machine._commit() or "unknown", **found}


def write(record: dict[str, Any], file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, json.dumps(record, indent=1) + "\n")


# --- the parts --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Runs:
    args: argparse.Namespace
    folder: Path
    ends: float
    clocks: Clocks
    found: dict[str, Any]
    """What limits.measured told."""


def run_all(parts: list[Part], record: dict[str, Any], runs: Runs) -> None:
    reduced = runs.found["reduced"]
    for part in parts:
        began = time.monotonic()
        record["rows"] = [row for row in record["rows"] if row["part"] != part.name]
        runs.clocks.read()
        for figure in figures(part, runs):
            figure = replace(figure.reduced() if reduced else figure, **runs.clocks.read())
            record["rows"].append({**tree(figure), "part": part.name})
            write(record, runs.args.out)
        print(f"{part.row} {part.name}: {time.monotonic() - began:.0f} s", flush=True)


def figures(part: Part, runs: Runs) -> Iterator[Figure]:
    """What a part finds; a figure without a value says why there is nothing, or nothing more."""
    now = time.monotonic()
    budget = min(runs.args.budget * part.share, runs.ends - now)
    if budget < LEAST:
        yield Figure(part.name, "", row=part.row, cause=f"no time left of {runs.args.within:g} s")
        return
    # A part that paces itself ends by itself; the last sixth is for what it has begun.
    place = partial(Place, runs.found["reduced"], now + budget * 5 / 6, runs.folder, attention=runs.args.attention)
    made = partial(in_place, part.work, partial(place, copy_rate=runs.found["limits"]["copy"]))
    try:
        yield from told(made, now + 1.2 * budget if runs.ends - now > 1.2 * budget else runs.ends, log_of(part, runs))
    except Broken as error:
        yield Figure(part.name, "", row=part.row, cause=reason(error))


def in_place(work: Callable[[Place], None], place: Callable[..., Place], tell: Tell) -> None:
    here = place(tell=tell)
    if here.reduced:  # threads of a tiny shape wait for each other
        os.environ["OMP_NUM_THREADS"] = "1"
        torch.set_num_threads(1)
    work(here)


def log_of(part: Part, runs: Runs) -> Path:
    return runs.folder / f"{part.row}-{part.name.replace(' ', '-')}.log"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
