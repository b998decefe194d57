"""What a run takes at most, planned (`launch.py plan`) and measured, on the CPU; and what other estimators say of it.

Measured is what a process of its own has resident at most in two steps, above what it held before the model. The
allocator gives back what is freed at once, since it is the plan of the tensors that is judged, not glibc's habits.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from benchmarks.plan.cases import CASES, Case
from benchmarks.rows import Row
from trainer.engines.ddp.settings import Ddp

MIB = 2**20
ROOT = Path(__file__).parent.parent.parent
MALLOC = {"MALLOC_ARENA_MAX": "2", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "131072"}
PATIENCE = 240.0  # seconds of a case: DeepSpeed's first start may build an operator
MEDIAN, WORST, UNDER = 0.03, 0.08, 0.03


def measure(quick: bool) -> list[Row]:
    rows, errors = [], []
    theirs: dict[str, list[float]] = {}
    for index, case in enumerate(CASES):
        if quick and index % 6:
            continue
        planned = case.planned().gpu
        try:
            taken = peak(index, case)
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            # Perhaps it has no room where the plan has said that it fits.
            rows.append(Row(str(case), "MiB", planned / MIB, goal="measured", met=False, cause=str(error)[:300]))
            continue
        errors.append(planned / taken - 1)
        for name, estimate in estimates(case).items():
            theirs.setdefault(name, []).append(estimate / taken - 1)
        said = ", ".join(f"{name} {found[-1]:+.0%}" for name, found in theirs.items())
        rows.append(
            Row(f"{case}: plan {errors[-1]:+.1%}; {said}", "MiB", planned / MIB, "", None, "measured", taken / MIB)
        )
    return [*rows, *(verdicts(errors) if errors else []), *(peers(name, found) for name, found in theirs.items())]


def verdicts(errors: list[float]) -> list[Row]:
    sizes = list(map(abs, errors))
    out = []
    for name, found, most in (
        ("error of the plan, median", median(sizes), MEDIAN),
        ("error of the plan, largest", max(sizes), WORST),
        ("the plan is too low by at most", max(0.0, -min(errors)), UNDER),
    ):
        cause = "" if found <= most else "see the rows"
        out.append(Row(name, "%", 100 * found, goal=f"at most {most:.0%}", met=found <= most, cause=cause))
    return out


def peers(name: str, errors: list[float]) -> Row:
    sizes = list(map(abs, errors))
    return Row(f"error of {name}: {min(errors):+.0%} to {max(errors):+.0%}; median", "%", 100 * median(sizes))


def estimates(case: Case) -> dict[str, float]:
    """Of others, in bytes, by the parameters alone: accelerate 1.15's estimate-memory (training with Adam: four times
    the fp32 weights), DeepSpeed 0.19.8's estimate_zero3_model_states_mem_needs (18 bytes a parameter over the ranks,
    and the largest layer), LLaMA-Factory's table (18 bytes a parameter in bf16 and fp32, 8 in bf16 alone)."""
    model = case.model
    count, shards = model.parameters, 1 if isinstance(case.engine, Ddp) else case.ranks
    layer = max([*(one.parameters for one in model.layers), model.embedding])
    return {
        "accelerate": 16.0 * count,
        "DeepSpeed": 18.0 * count / shards + 4 * layer,
        "LLaMA-Factory": (8.0 if case.precision == "bf16" else 18.0) * count / shards,
    }


def peak(index: int, case: Case) -> int:
    """Bytes of the rank that takes most."""
    with tempfile.TemporaryDirectory(prefix="plan-") as folder:
        told = run(case, ["benchmarks.plan.child", str(index), folder], MALLOC)
    return max(int(out.split()[-1]) for out in told)


def run(case: Case, module: list[str], more: dict[str, str]) -> list[str]:
    """What each rank of a case has printed at its end. `module`: with its arguments; `more`: variables. Raises
    RuntimeError."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    argv = [sys.executable, "-m", *module]
    ranks = [
        subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=env)
        for env in (environment(rank, case.ranks, port, more) for rank in range(case.ranks))
    ]
    try:
        said = [rank.communicate(timeout=PATIENCE) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    if failed := [errors for rank, (_, errors) in zip(ranks, said, strict=True) if rank.returncode]:
        raise RuntimeError(f"{case}: {failed[0].strip().splitlines()[-1:]}")
    return [out for out, _ in said]


def environment(rank: int, ranks: int, port: str, more: dict[str, str]) -> dict[str, str]:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "GROUP_RANK": 0}
    meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    return {**os.environ, **{name: str(value) for name, value in place.items()}, **meet, **more}
