"""Faults after which a run must not go on, and starts of which only one may."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from typing import Any

from envs.drill.faults import STEP, Scene, preempt
from envs.drill.stage import Row, Stage, ready
from envs.drill.watch import events, last_step, wait_until
from slurm.causes.failures import job_log
from slurm.rundir import RunDir

START = "the start"
SHORT = {"steps": 150}
"""For a run of its own, which is only compared with what it should be."""


def cancel(stage: Stage, moments: Sequence[str] = (STEP,)) -> Iterator[Row]:
    """scancel in every phase: with the queue empty nothing is left that could come back."""
    for number, moment in enumerate(moments):
        run = stage.start(f"cancel-{number}")
        stage.say(f"{run.name}: scancel in {moment}")
        row = Row("F13", f"scancel, in {moment}")
        scene = Scene(stage.place, run, 1, random.Random(f"{stage.seed} {moment}"))
        if moment == START:
            wait_until(lambda run=run: run.newest_epoch() == 1, "the first attempt")  # type: ignore[misc]
            time.sleep(scene.dice.random() * 5)
        else:
            row.step = ready(scene, moment)
        wait_until(lambda run=run: len(run.jobs()) == 2, "the successor")  # type: ignore[misc]
        stage.place.ask("scancel", scene.job)
        gone(stage, run)
        row.cause, row.went_on = str((run.cancelled or {}).get("cause")), "nowhere"
        if row.cause != "cancel":
            row.wrong.append("the run does not know that it was cancelled")
        if run.newest_epoch() > 1:
            row.wrong.append("it came back")
        yield row


def gone(stage: Stage, run: RunDir) -> None:
    """Wait until no job of the run is in the queue."""

    def ours() -> set[str]:
        return {str(record["job"]) for record in run.jobs()} & set(stage.place.jobs())

    wait_until(lambda: not ours(), f"the jobs of {run.name} to leave the queue")


def poison(stage: Stage) -> Iterator[Row]:
    """What fails again and again is tried three times, and told in one message."""
    broken = {"launcher": "srun", "environment": {"TORCH_DISTRIBUTED_DEBUG": "nonsense"}}  # torch does not import then
    kinds: list[tuple[str, str, dict[str, Any]]] = [
        ("exit 1 at the start", "crash", {"job": broken}),
        ("a loss that is not finite", "crash", {"optim": {"lr": 1e30}}),
    ]
    for number, (text, cause, changes) in enumerate(kinds):
        run = stage.start(f"poison-{number}", **changes)
        stage.say(f"{run.name}: {text}")
        row = Row("F14", text)
        wait_until(lambda run=run: run.over, "the end")  # type: ignore[misc]
        gone(stage, run)
        row.cause, row.went_on = str(run.attempts()[-1]["cause"]), "nowhere"
        if row.cause != cause:
            row.wrong.append(f"expected {cause}: {run.attempts()[-1]['reason']}")
        if len(run.attempts()) > 3 or run.done:
            row.wrong.append(f"{len(run.attempts())} attempts")
        if (run.cancelled or {}).get("cause") != "no progress":
            row.wrong.append(f"no word of lacking progress: {run.cancelled}")
        yield row


def two_starters(stage: Stage) -> Iterator[Row]:
    """A run's script sent a second time while it runs: one owner, and one alone."""
    run = stage.start("twice", train={"steps": 4 * SHORT["steps"]}, job={"nodes": 1})
    stage.say(f"{run.name}: sbatch of its script while it runs")
    scene = Scene(stage.place, run, 1, random.Random(stage.seed))
    row = Row("F17", "its script is sent again while it runs", step=ready(scene, STEP))
    second = stage.place.ask("sbatch", "--parsable", str(run.script)).strip()
    wait_until(lambda: run.over and len(run.attempts()) == run.newest_epoch(), "the end")
    gone(stage, run)
    row.cause, row.went_on = str(run.attempts()[-1]["cause"]), "same nodes"
    if run.newest_epoch() != 1 or not run.done:
        row.wrong.append(f"{run.newest_epoch()} attempts, done: {run.done}")
    if "runs this run already" not in (said := job_log(run, second).read_text()):
        row.wrong.append(f"the second job met no first one: {said}")
    yield row


def done_in_the_grace(stage: Stage) -> Iterator[Row]:
    """A run that finishes inside a preemption's grace: what Slurm starts again leaves at once."""
    run = stage.start("grace", train=SHORT, job={"partition": "preempt", "continue_by": "requeue"})
    stage.say(f"{run.name}: preempted in its last steps")
    row = Row("F22", "an urgent job, in its last steps")
    scene = Scene(stage.place, run, 1, random.Random(stage.seed))
    total = SHORT["steps"]
    wait_until(lambda: last_step(run, 1) >= total - 2, "the last steps")
    row.step = last_step(run, 1)
    preempt(scene)
    wait_until(lambda: run.over and len(run.attempts()) == run.newest_epoch(), "the end")
    gone(stage, run)
    row.cause, row.went_on = str(run.attempts()[-1]["cause"]), "-"
    if not run.done or len(events(run, "step")) != total:
        row.wrong.append(f"done: {run.done}, {len(events(run, 'step'))} steps of {total}")
    yield row


def other_layouts(stage: Stage) -> Iterator[Row]:
    """Stopped and resumed on other numbers of nodes and ranks: the same samples, and losses that differ by rounding."""
    job = stage.recipe["job"]
    run, first = stage.start("layouts"), (job["nodes"], job["gpus_per_node"])
    whole = {event["step"]: event for event in events(RunDir(stage.folder / "runs" / "whole"), "step")}
    for epoch, (nodes, gpus) in enumerate([(1, 1), (1, first[1]), (first[0], 1), first], 1):
        row = Row("F16", f"stop, and resume on {nodes} x {gpus}", cause="stop", went_on="next job")
        row.step = ready(Scene(stage.place, run, epoch, random.Random(f"{stage.seed} {epoch}")), STEP)
        stage.launch("stop", "layouts")
        wait_until(lambda: run.over, "the stop")
        gone(stage, run)
        stage.launch("resume", "layouts", "--nodes", str(nodes), "--gpus", str(gpus))
        step = wait_until(lambda epoch=epoch: events(run, "step", epoch + 1), "a step")[0]  # type: ignore[misc]
        row.lost = last_step(run, epoch) + 1 - step["step"]
        if row.lost:
            row.wrong.append(f"{row.lost} steps were lost")
        if step["hash"] != whole[step["step"]]["hash"]:
            row.wrong.append("other samples")
        if abs(step["loss"] / whole[step["step"]]["loss"] - 1) > 1e-5:
            row.wrong.append(f"loss {step['loss']} instead of {whole[step['step']]['loss']}")
        yield row
    stage.launch("stop", "layouts")
    wait_until(lambda: run.over, "the end")
