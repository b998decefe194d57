"""Runs on the stage: started as a user starts them, hurt fault by fault, and compared with the one that nobody hurt."""

from __future__ import annotations

import random
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from durable import write_atomic
from envs.drill.faults import EVALUATION, SAVE, STEP, Fault, Scene
from envs.drill.place import ROOT, Place, Site, patience
from envs.drill.watch import Silent, events, history, last_step, wait_until, weights
from settings import dump_yaml, merge, read_yaml
from slurm.rundir import RunDir

END = 1800.0
"""Seconds in which the rest of a run passes."""


@dataclass
class Row:
    """What was injected, and what came of it."""

    number: str
    injected: str
    step: int | None = None
    cause: str = "-"
    """What the run's own records call it."""
    went_on: str = "-"
    """Where the next attempt ran."""
    back: float | None = None
    """Seconds from the last step before to the first one after it."""
    lost: int | None = None
    """Steps that were done again."""
    wrong: list[str] = field(default_factory=list)


@dataclass
class Stage:
    place: Place
    folder: Path
    """For recipes and runs of the drill."""
    recipe: dict[str, Any]
    """A small one, complete."""
    seed: int = 0
    say: Callable[[str], None] = lambda line: None

    def start(self, name: str, **changes: Any) -> RunDir:
        """Submit the recipe under this name, as a user does; `changes` are laid on its tree."""
        file = self.folder / f"{name}.yaml"
        write_atomic(file, dump_yaml({**merge(self.recipe, changes), "name": name}))
        self.launch(str(file), *(["--cluster", self.place.cluster] if isinstance(self.place, Site) else []))
        return RunDir(self.folder / "runs" / name)

    def launch(self, *words: str) -> str:
        argv = [sys.executable, str(ROOT / "launch.py"), *words, "--runs-dir", str(self.folder / "runs")]
        try:
            done = subprocess.run(
                argv, cwd=self.folder, env=self.place.env(), capture_output=True, text=True, timeout=300
            )
        except subprocess.TimeoutExpired:
            raise Silent(f"launch.py {' '.join(words)} has not ended within 300 s") from None
        if done.returncode:
            raise Silent(f"launch.py {' '.join(words)}: {done.stderr.strip()}")
        return done.stdout

    def pace(self) -> float:
        """Seconds of a step, by a short run."""
        run = self.start("pace")
        wait_until(lambda: run.over, f"the end of {run.path}", patience(self.place))
        if not (steps := events(run, "step")):
            raise Silent(f"{run.path} made no step: {run.cancelled}")
        return float(statistics.median(step["seconds"] for step in steps))

    def through(self, run: RunDir, faults: Sequence[Fault], to_the_end: bool) -> Iterator[Row]:
        """One run through faults, one after another; to its end, or until it goes on after the last one."""
        for number, fault in enumerate(faults):
            dice = random.Random(f"{self.seed} {run.name} {number}")
            scene = Scene(self.place, run, max(1, run.newest_epoch()), dice)
            self.say(f"{run.name}: {fault.text}")
            yield self.one(scene, fault)
        if not to_the_end and not run.over:
            self.launch("stop", run.name)
        wait_until(
            lambda: run.over and len(run.attempts()) == run.newest_epoch(),
            f"the end of {run.path}",
            patience(self.place, END),
        )

    def one(self, scene: Scene, fault: Fault) -> Row:
        when = "" if fault.moment == STEP else f", in {fault.moment}"
        run, row = scene.run, Row(fault.number, f"{fault.text}{when}")
        try:
            row.step = ready(scene, fault.moment)
            fault.inject(scene)
            wait_until(
                lambda: run.over or len(run.attempts()) >= scene.epoch,
                f"the end of attempt {scene.epoch}",
                patience(scene.place),
            )
        finally:
            if fault.mend:
                fault.mend(scene)
        after = f"a step after attempt {scene.epoch}"
        wait_until(lambda: run.over or going_on(run, scene.epoch), after, patience(scene.place))
        judge(scene, fault, row)
        return row

    def same(self, run: RunDir, whole: RunDir) -> list[str]:
        """What tells a run from the one that nobody hurt: no loss, no gradient norm, no sample, no weight may."""
        stopped = (run.cancelled or {}).get("cause") == "stop"
        if not whole.done or not (run.done or stopped):
            return [f"{one.name} did not finish: {one.cancelled}" for one in (run, whole) if not one.done]
        keys = ("loss", "grad_norm", "hash")
        pairs = zip(history(run, *keys), history(whole, *keys), strict=False)
        other = [ours[0] for ours, theirs in pairs if ours != theirs]
        wrong = [f"step {other[0]} has another loss, gradient or samples ({len(other)} steps)"] if other else []
        steps = run.committed_step() if stopped else len(history(whole))
        if len(history(run)) != steps:
            wrong.append(f"{len(history(run))} steps instead of {steps}")
        if run.done and weights(run) != weights(whole):
            wrong.append("other weights")
        audit = subprocess.run(
            [sys.executable, "-m", "trainer.audit", str(run.path)], cwd=ROOT, capture_output=True, text=True
        )
        return wrong + ([audit.stdout.strip()] if audit.returncode else [])


def ready(scene: Scene, moment: str) -> int:
    """Wait for the moment, with a new checkpoint behind it: so the next failure is none without progress. Returns the
    last step that was told. Raises Silent when the run is over before."""
    run, epoch = scene.run, scene.epoch

    def until(condition: Callable[[], Any], what: str) -> Any:
        found = wait_until(lambda: condition() or run.over, what, patience(scene.place))
        if found is True and not condition():
            raise Silent(f"{run.name} was over before {what}: {run.cancelled or 'it is done: give it more steps'}")
        return found

    resumed = until(lambda: events(run, "resume", epoch), f"attempt {epoch}")[0]["step"]
    until(lambda: run.committed_step() > resumed, f"a checkpoint of attempt {epoch}")
    settings = read_yaml(run.path / "config.yaml")
    if moment == SAVE:
        until(lambda: saving(run, epoch), "a save")
    elif moment == EVALUATION:
        until(lambda: last_step(run, epoch) % settings["evaluation"]["every"] == 0, "an evaluation")
    else:
        wanted = last_step(run, epoch) + scene.dice.randrange(1, settings["checkpoint"]["every"] + 1)
        until(lambda: last_step(run, epoch) >= wanted, f"step {wanted}")
    return last_step(run, epoch)


def saving(run: RunDir, epoch: int) -> bool:
    return next((run.path / "checkpoints").glob(f".tmp-*-e{epoch:04d}-*"), None) is not None


def going_on(run: RunDir, epoch: int) -> int | None:
    """The attempt after `epoch` that does steps again: one that a second signal ended at its start did none."""
    return next((event["epoch"] for event in events(run, "step") if event["epoch"] > epoch), None)


def judge(scene: Scene, fault: Fault, row: Row) -> None:
    """Fill in what came of a fault, and what of it is wrong."""
    run, epoch = scene.run, scene.epoch
    end = next((record for record in run.attempts() if record["attempt"] == epoch), None)
    if end is None:
        row.wrong.append("the run was over before it was felt: give it more steps")
        return
    row.cause = end["cause"]
    if end["cause"] not in fault.causes:
        row.wrong.append(f"expected {' or '.join(fault.causes)}: {end['reason']}")
    if wrong := fault.check(scene):
        row.wrong.append(wrong)
    later = going_on(run, epoch)
    if later is None:
        row.wrong.append(f"the run did not go on: {run.cancelled}")
        return
    row.lost = max(0, last_step(run, epoch) - events(run, "resume", later)[0]["step"])
    allowed = read_yaml(run.path / "config.yaml")["checkpoint"]["every"] if fault.replays else 0
    if row.lost > allowed:
        row.wrong.append(f"{row.lost} steps were lost, {allowed} may be")
    row.went_on = where(run, epoch, later)
    if before := events(run, "step", epoch):
        row.back = events(run, "step", later)[0]["time"] - before[-1]["time"]


def where(run: RunDir, epoch: int, later: int) -> str:
    """Where the attempt that went on after `epoch` ran."""
    old, new = run.read_claim(epoch), run.read_claim(later)
    if old is None or new is None or old.job_id != new.job_id:
        return "next job"
    return "same job" if old.restart_count != new.restart_count else "same nodes"
