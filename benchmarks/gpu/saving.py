"""B6, B7: how long training stands still for a checkpoint, and how soon it steps again from one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.gpu.child import reason
from benchmarks.gpu.figures import Figure
from benchmarks.gpu.ours import Case, Ours
from benchmarks.gpu.peers import HfTrainer
from benchmarks.gpu.place import Place
from trainer.checkpoint.save import Content, Saver
from trainer.checkpoint.writers import Writers

ROOT = Path(__file__).parents[2]
CASE = Case("1B", 4096, 4, recompute="selective")
STALL = 0.3
SOON = 12.0
NEXT = 3
"""Steps after a save whose slowness counts as well."""


def saves(place: Place) -> None:
    """B6: a save, and what the next steps take longer; each peer where there is time and room for it."""
    ours = Ours(CASE.at(place), place)
    batch = ours.batch()
    size = sum(kept.nbytes for shard in ours.engine.shards() for kept in shard.tensors.values())
    usual = median(place.paced(lambda: ours.step(batch), warm=2, most=5))
    title = f"{ours.case}: stall of a save of {size / 1e9:.3g} GB"
    free = shutil.disk_usage(place.folder).free
    if free < 2.2 * size:
        place.tell(Figure(title, "s", row="B6", cause=f"{free / 1e9:.0f} GB are free in {place.folder.parent}"))
        return
    runs: dict[str, Callable[[Path], Callable[[], object]]] = {
        "outlast": lambda _: save(saver, place),
        "torch.save": lambda folder: torch_save(ours, folder),
        "dcp.async_save": lambda folder: dcp_async_save(ours, folder),
    }
    saver = Saver(place.runtime, ours.engine, Writers(place.runtime))
    note = f"with the slowness of the next steps; one takes {usual:.3g} s; 1B, since 3B's 39 GB take minutes"
    mine, took = None, 0.0
    for name, run in runs.items():
        peer = "" if name == "outlast" else name
        figure = Figure(title, "s", mine, peer, row="B6", note=note)
        if peer and place.left() < 1.5 * took:
            place.tell(replace(figure, cause=f"no time left for {peer}").at_least(3))
            continue
        began = time.monotonic()
        try:
            spent = stall(run, place, lambda: ours.step(batch), usual)
        except Exception as error:
            place.tell(replace(figure, cause=f"{name}: {reason(error)}"))
        else:
            mine, took = (mine, took) if peer else (spent, time.monotonic() - began)
            place.tell(
                replace(figure, peer=spent).at_least(3) if peer else replace(figure, outlast=spent).at_most(STALL)
            )


def stall(run: Callable[[Path], Callable[[], object]], place: Place, step: Callable[[], object], usual: float) -> float:
    """Seconds until `run` returns, and by which the next steps exceed the usual; then what it has written goes."""
    folder = place.folder / f"peer-{time.monotonic_ns()}"
    folder.mkdir()
    try:
        ended: list[Callable[[], object]] = []
        spent = place.seconds(lambda: ended.append(run(folder)))
        spent += sum(max(0.0, place.seconds(step) - usual) for _ in range(NEXT))
        ended[0]()
        return spent
    finally:
        shutil.rmtree(folder)


def save(saver: Saver, place: Place) -> Callable[[], object]:
    """The product's own; B7 resumes from what it leaves."""
    saver.begin(1, Content(layout={}, config={}, data="", state={}))
    left_by(place).write_text(str(place.runtime.run_dir))
    return saver.finish


def left_by(place: Place) -> Path:
    return place.folder / "saved"


def state_of(ours: Ours) -> dict[str, Any]:
    return {f"{shard.name}/{kind}": kept for shard in ours.engine.shards() for kind, kept in shard.tensors.items()}


def torch_save(ours: Ours, folder: Path) -> Callable[[], object]:
    with open(folder / "state.pt", "wb") as file:
        torch.save(state_of(ours), file)
        os.fsync(file.fileno())
    return lambda: None


def dcp_async_save(ours: Ours, folder: Path) -> Callable[[], object]:
    """Its thread, with its own staging."""
    import torch.distributed.checkpoint as dcp

    future: Any = dcp.async_save(state_of(ours), checkpoint_id=folder / "dcp")
    return lambda: future.result()


# --- B7 ---------------------------------------------------------------------------------------------------


def resumes(place: Place) -> None:
    """B7: a process that starts cold, up to the end of its first step; the files are still in the page cache."""
    case = CASE.at(place)
    if not left_by(place).exists():
        ours = Ours(case, place)
        save(ours, place)
        ours.close()
    run_dir = left_by(place).read_text()
    title = f"{case}: cold start to the first step after a resume"
    found = stamps(lambda: cold("ours", run_dir, place))
    mine, cause = found.pop("all", None), found.pop("reason", "")
    place.tell(Figure(title, "s", mine, row="B7", note=in_words(found), cause=cause).at_most(SOON))
    theirs = stamps(lambda: cold("hf", trainers_checkpoint(case, place), place))
    peer, cause = theirs.pop("all", None), cause or theirs.pop("reason", "")
    figure = Figure(title, "s", mine, "HF Trainer", peer, row="B7", note=f"theirs: {in_words(theirs)}", cause=cause)
    place.tell(figure.at_least(1.5))


def stamps(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Seconds by phase; or the `reason` why there are none."""
    try:
        return work()
    except Exception as error:
        return {"reason": reason(error)}


def in_words(phases: dict[str, Any]) -> str:
    return ", ".join(f"{what} {seconds:.3g} s" for what, seconds in phases.items())


def trainers_checkpoint(case: Case, place: Place) -> str:
    """Of one step of Trainer: the folder that it resumes from."""
    from transformers import TrainerCallback

    folder = place.folder / "trainer"
    extra = {"output_dir": str(folder), "save_strategy": "steps", "save_steps": 1}
    HfTrainer(case, place, extra=extra).run(TrainerCallback, steps=1)
    place.free()
    return str(folder / "checkpoint-1")


def cold(who: str, folder: str, place: Place) -> dict[str, float]:
    """Seconds of each phase of a new process, and of all of it."""
    argv = [sys.executable, "-m", "benchmarks.gpu.resumed", who, folder, place.attention, repr(time.time())]
    done = subprocess.run(
        argv, cwd=ROOT, capture_output=True, text=True, timeout=max(1.0, place.left()), env=plain_environment()
    )
    if done.returncode:
        raise RuntimeError(done.stderr.strip().rpartition("\n")[2] or f"exit code {done.returncode}")
    phases: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return phases


def plain_environment() -> dict[str, str]:
    """Without what deepspeed or a process group have set."""
    left_out = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    return {name: value for name, value in os.environ.items() if name not in left_out}
