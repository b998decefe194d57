"""What preemptions cost, beside the peers: the same model on the same tokens on a pocket cluster of one node and two
ranks, preempted by an urgent job after the same seeded steps.

goodput: steps of the run x its contender's ideal step (the lowest median of its runs) over the seconds for which its
jobs had the node. A requeued job may start only 121 s later on a stock Slurm (6 s here): nobody has the node meanwhile,
so that this fixed delay is in no goodput; `queue` and the wall clock show it. Each contender runs as its documentation
has it, on a Slurm set up as the peers wish (preempt_send_user_signal); without that, Lightning and submitit save
nothing at a preemption.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import machine, peers
from benchmarks.goodput import model
from benchmarks.goodput.account import CAUSES, Loss, Run, goodput, losses, typical
from benchmarks.goodput.place import Stage, set_stage
from benchmarks.goodput.runs import CONTENDERS, perform, preempted_after
from benchmarks.processes import Unable
from benchmarks.rows import Row
from durable import write_atomic

WORK = Path(__file__).parent.parent / ".goodput"
"""Ignored by git: runs, and the result of each, so that a measurement that was cut goes on."""
OURS, *PEERS = CONTENDERS
TITLES = {"transformers": "HF Trainer, JIT checkpoint", "lightning": "Lightning, auto-requeue", "submitit": "submitit"}
STEPS, QUICK_STEPS = 2000, 300
PREEMPTIONS, QUICK_PREEMPTIONS = (0, 2, 5, 10), (0, 5)
JUDGED = 5
"""Preemptions at which the goals hold."""
GOAL, RATIO, GAP, MODELLED = 0.90, 1.15, 3.0, 97.0
STOCK_REQUEUE = 121.0
"""Seconds from a requeue until the job may start on a stock Slurm 22.05 (measured for DESIGN.md, section 8)."""
SEED = 1

Results = dict[tuple[str, int], Run]


def measure(quick: bool) -> list[Row]:
    absent = peers.install()
    steps, counts = (QUICK_STEPS, QUICK_PREEMPTIONS) if quick else (STEPS, PREEMPTIONS)
    results: Results = {}
    stage: Stage | None = None
    try:
        for count in counts:
            for name in CONTENDERS:
                if name in absent:
                    results[name, count] = Run(words=f"not installed: {absent[name]}")
                    continue
                kept = recall(name, count, steps)
                if kept is None:
                    stage = stage or set_stage(WORK, steps)
                    kept = keep(stage, name, count, steps)
                results[name, count] = kept
    finally:
        if stage:
            stage.pocket.down()
    return list(rows(results, steps, counts))


# --- what was measured already --------------------------------------------------------------------------------


def recall(name: str, count: int, steps: int) -> Run | None:
    """The result that stands for this version of the contender. Changes that are not committed have no version."""
    file = _file(name, count, steps)
    found = json.loads(file.read_text()) if file.exists() else {}
    stands = found.get("about") == about(name) and "+changes" not in found["about"]["version"]
    return Run.of(found["run"]) if stands else None


def keep(stage: Stage, name: str, count: int, steps: int) -> Run:
    print(f"  {name}: {steps} steps, {count} preemptions", flush=True)
    try:
        run = perform(stage, CONTENDERS[name], f"{name}-{count}", steps, preempted_after(count, steps, SEED))
    except Unable as error:
        if name == OURS:
            raise
        run = Run(words=str(error))
    _file(name, count, steps).parent.mkdir(exist_ok=True)
    write_atomic(_file(name, count, steps), json.dumps({"about": about(name), "run": run.tree()}) + "\n")
    return run


def about(name: str) -> dict[str, Any]:
    versions = machine.versions()
    return {"version": versions[name], "torch": versions.get("torch"), "seed": SEED}


def _file(name: str, count: int, steps: int) -> Path:
    return WORK / "results" / f"{name}-{count}-of-{steps}.json"


# --- rows -----------------------------------------------------------------------------------------------------


def rows(results: Results, steps: int, counts: tuple[int, ...]) -> Iterator[Row]:
    finished = {name: [results[name, count] for count in counts if results[name, count].done] for name in CONTENDERS}
    ideal = {name: min(run.step_seconds for run in runs) for name, runs in finished.items() if runs}
    found = {name: losses(results[name, JUDGED], ideal[name]) for name in ideal}
    lost = {name: {cause: typical(events, cause) for cause in CAUSES} for name, events in found.items() if events}
    for count in counts:
        done = {name: results[name, count] for name in ideal if results[name, count].done}
        shares = {name: goodput(run, steps, ideal[name]) for name, run in done.items()}
        yield from goodput_rows(results, shares, count, steps, lost)
        yield from beside(f"wall clock, k = {count}", "s", {name: run.wall for name, run in done.items()})
        if count == JUDGED:
            quiet = {
                name: undisturbed(name, results, steps, ideal[name], lost[name])
                for name in done
                if name in lost and results[name, 0].done
            }
            yield from beside(f"goodput, k = {count}, every event as the median one", "", quiet, more=True)
            stock = {name: on_stock(name, run, lost) for name, run in done.items()}
            yield from beside(f"wall clock, k = {count}, with a stock Slurm's delay", "s", stock)
    yield from beside("ideal step", "ms", {name: 1000 * seconds for name, seconds in ideal.items()})
    for cause in CAUSES:
        yield from beside(
            f"lost at the median event, k = {JUDGED}: {cause}",
            "s",
            {name: each[cause] for name, each in lost.items()},
        )
    for number, loss in enumerate(found.get(OURS, []), 1):
        yield event_row(number, loss)
    gap = max((loss.gap for loss in found.get(OURS, [])), default=None)
    yield gap_row(gap)
    yield modelled_row(GAP if gap is None else gap)


def goodput_rows(
    results: Results, shares: dict[str, float], count: int, steps: int, lost: dict[str, dict[str, float]]
) -> Iterator[Row]:
    """Ours against the goal, then beside each peer; the goal of the ratio stands with the best one."""
    name, ours, judged = f"goodput, k = {count}", shares.get(OURS), count == JUDGED
    best = max((peer for peer in PEERS if peer in shares), key=lambda peer: shares[peer], default=None)
    if judged:
        met = None if ours is None else ours >= GOAL
        yield Row(name, "", ours, goal=f"at least {GOAL:.2f}", met=met, cause=why_low(results[OURS, count], ours))
    for peer in PEERS:
        theirs = shares.get(peer)
        ratio = ours / theirs if ours is not None and theirs else None
        row = Row(name, "", ours, TITLES[peer], theirs, ratio=ratio, cause=results[peer, count].words)
        if theirs is None:
            yield replace(row, goal="to finish")
        elif judged and peer == best:
            met = None if ratio is None else ratio >= RATIO
            yield replace(row, goal=f"at least {RATIO}x the best peer", met=met, cause=why_close(peer, lost))
        else:
            yield row


def why_low(run: Run, share: float | None) -> str:
    if share is None:
        return run.words
    seconds = (1 - share) * run.allocated
    return f"{seconds:.0f} s are lost in all, a tenth of a run with {seconds * GOAL / (1 - GOAL):.0f} s of steps"


def why_close(peer: str, lost: dict[str, dict[str, float]]) -> str:
    ours, theirs = (lost.get(name, {}).get("imports and load", 0.0) for name in (OURS, peer))
    return (
        f"imports and load are {ours:.1f} s of ours and {theirs:.1f} s of the peer's at the median event, and a "
        "requeue's delay is in no goodput"
    )


def undisturbed(name: str, results: Results, steps: int, ideal: float, lost: dict[str, float]) -> float:
    """Goodput if each event had cost what the median one does, and all else what it costs where nobody preempts."""
    paid = sum(seconds for cause, seconds in lost.items() if cause != "queue")
    return steps * ideal / (results[name, 0].allocated + len(results[name, JUDGED].asked) * paid)


def on_stock(name: str, run: Run, lost: dict[str, dict[str, float]]) -> float:
    """Its wall clock where a requeue waits for a stock Slurm's fixed delay, not for this one's; a chain has none."""
    if name == OURS or name not in lost:
        return run.wall
    return run.wall + len(run.asked) * (STOCK_REQUEUE - lost[name]["queue"])


def beside(name: str, unit: str, figures: dict[str, float], more: bool = False) -> Iterator[Row]:
    """Ours beside each peer's, without a goal. `more` is better, else less is."""
    ours = figures.get(OURS)
    for peer in PEERS:
        theirs = figures.get(peer)
        ahead, behind = (ours, theirs) if more else (theirs, ours)
        ratio = ahead / behind if ahead is not None and behind else None
        yield Row(name, unit, ours, TITLES[peer], theirs, ratio=ratio)


def event_row(number: int, loss: Loss) -> Row:
    told = ", ".join(f"{cause} {seconds:.1f}" for cause, seconds in loss.causes.items() if cause != "queue")
    total = sum(seconds for cause, seconds in loss.causes.items() if cause != "queue")
    return Row(f"lost at event {number} ({told})", "s", total)


def gap_row(gap: float | None) -> Row:
    """The longest of the run's."""
    row = Row("gap by chain beyond imports and load", "s", gap, "requeue on a stock Slurm", STOCK_REQUEUE)
    ratio, met = (None, None) if gap is None else (STOCK_REQUEUE / gap, gap <= GAP)
    return replace(row, ratio=ratio, goal=f"at most {GAP:g} s", met=met)


def modelled_row(gap: float) -> Row:
    site = model.Site()
    ours = 100 * model.goodput(site, model.Saves(), gap)
    return Row(
        f"modelled goodput of a 70B run on {site.gpus} GPUs",
        "%",
        ours,
        goal=f"at least {MODELLED:g} %",
        met=ours >= MODELLED,
        cause="restarts and the saves at stops take the most",
    )
