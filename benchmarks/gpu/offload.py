"""B9: weights, gradients and moments in host memory, beside no offload and beside DeepSpeed's."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.gpu.child import reason
from benchmarks.gpu.figures import Figure
from benchmarks.gpu.ours import Case, Ours, rank_batch
from benchmarks.gpu.place import Place
from trainer.engines.ddp.settings import Ddp
from trainer.engines.deepspeed.settings import Deepspeed
from trainer.engines.fsdp.settings import Fsdp

MICRO, TOKENS = 2, 4096
STEPS = {"8k": 1, "32k": 4, "128k": 16}
"""Micro batches of a step, by its tokens."""
GOAL = 0.9
ZERO: dict[str, Any] = {
    "zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu", "pin_memory": True}},
    "bf16": {"enabled": True},
}
ENGINES: dict[str, Any] = {"none": Ddp(), "outlast": Fsdp(offload=True)}


def size_of(place: Place) -> str:
    """3B needs 51 GB of host memory for its state, page-locked."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return "3B" if memory > 100e9 else "1B"


def case_of(engine: Any, place: Place) -> Case:
    return Case(size_of(place), TOKENS, MICRO, max(STEPS.values()), recompute=True, engine=engine).at(place)


def offloaded(place: Place) -> None:
    """B9: whole optimizer steps without and with offload."""
    paces: dict[str, dict[str, float]] = {}
    for index, (name, engine) in enumerate(ENGINES.items()):
        share = place.left() / (3 - 2 * index)  # the one with offload is slower
        try:
            paces[name] = of_engine(case_of(engine, place), place.within(share))
        except Exception as error:
            place.tell(Figure(f"{size_of(place)}, offload {name}", "tokens/s", row="B9", cause=reason(error)))
        place.free()
    left_by(place).write_text(json.dumps(paces.get("outlast", {})))
    for step in STEPS:
        pace, none = (paces.get(name, {}).get(step) for name in ("outlast", "none"))
        cause = "" if pace and none else "no time left, or see above"
        title = f"{size_of(place)} T={TOKENS}, {step} tokens a step: offload"
        figure = Figure(title, "tokens/s", pace, "no offload", none, row="B9", cause=cause).faster(GOAL)
        place.tell(figure if step == "128k" else replace(figure, goal="", met=None))


def of_engine(case: Case, place: Place) -> dict[str, float]:
    """Tokens a second of steps of each size, the smallest first, as long as there is time."""
    ours = Ours(case, place)
    micros, spent = ours.batch().micro_batches, 0.0
    found: dict[str, float] = {}
    for step, count in STEPS.items():
        if found and place.left() < 2 * spent * 4:
            break
        batch = rank_batch(micros[:count])
        spent = median(place.paced(lambda batch=batch: ours.step(batch), warm=1, most=3))  # type: ignore[misc]
        found[step] = batch.valid_tokens / spent
    ours.close()
    return found


def deepspeeds(place: Place) -> None:
    """B9's peer: ZeRO 3 with its optimizer offloaded, by the product's own engine for it. In a process of its own."""
    case = replace(case_of(Deepspeed(config=ZERO), place), accumulation=1)
    title = f"{case}: DeepSpeed ZeRO 3 offload"
    try:
        import deepspeed
    except ImportError as error:
        place.tell(Figure(title, "tokens/s", row="B9", cause=reason(error)))
        return
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = (
        False  # one rank shares memory with nobody: no compiler runs
    )
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}  # it reads them, whoever has made the group
    ours = Ours(case, place)
    batch = ours.batch()
    pace = case.step_tokens / median(place.paced(lambda: ours.step(batch), warm=1, most=3))
    mine = json.loads(left_by(place).read_text()).get("8k") if left_by(place).exists() else None
    cause = "" if mine else "Outlast's own was not measured"
    note = "each in a process of its own, one after the other"
    figure = Figure(f"{case}: offload", "tokens/s", mine, "DeepSpeed ZeRO 3", pace, row="B9", note=note, cause=cause)
    place.tell(figure.faster(1.3))


def left_by(place: Place) -> Path:
    """Outlast's paces, for the part that comes after it."""
    return place.folder / "offload.json"
