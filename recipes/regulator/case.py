"""`make case`: the regulator's case from data to its page, on two CPU cores.

    python -m recipes.regulator.case [--full]

The base, full fine-tuning and LoRA are trained on the pocket cluster, one after the other, at the learning rates of the
recipes; an urgent job takes the nodes from each method's last run once. Both are evaluated on the test set, compared,
and written to results.json and docs/case-regulator.md. On a CPU without instructions for bf16 they compute in fp32, or
the hour would be two, and the page says which. --full first looks for each method's own rate on the development
set, and trains three seeds of each; the methods run side by side then, a rank each, so that no rank waits for another.
Said again it goes on: what is done is left.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from threading import Event
from typing import Any

from durable import read_lines, write_atomic
from envs.demo import preempt as take_nodes
from envs.pocket import Pocket, PocketError, up
from recipes.regulator import leaks, page
from settings import read_yaml
from slurm.rundir import RunDir
from trainer.host import multiplies_bf16

ROOT = Path(__file__).parent.parent.parent
HERE = Path(__file__).parent
DATA = HERE / "demo"
BASE = "regulator-base"
METHODS = ("full", "lora")
RATES = {"full": ("5e-4", "1e-3", "2e-3"), "lora": ("1e-3", "2e-3", "4e-3")}
SEEDS = (1, 2, 3)
STEPS_BEFORE_PREEMPTION = 20
NO_SIGN = 1800.0  # seconds


def main(argv: list[str]) -> int:
    out = argparse.ArgumentParser(prog="python -m recipes.regulator.case", description=__doc__.split("\n")[0])
    out.add_argument("--full", action="store_true", help="rates from the development set, three seeds of each method")
    args = out.parse_args(argv)
    started = time.monotonic()
    place = Place(pocket())
    if not (DATA / "general" / "general.json").exists():
        place.python("recipes.regulator.data", str(DATA), "--short")
    place.train(BASE, "base.yaml", *(() if multiplies_bf16() else ("train.precision=fp32",)))
    found = side_by_side(place) if args.full else {method: trained(place, method, full=False) for method in METHODS}
    rates = {method: by_rate for method, (by_rate, _) in found.items()}
    runs = {method: names for method, (_, names) in found.items()}
    write_atomic(page.RECORD, json.dumps(record(place, runs, rates), indent=1) + "\n")
    page.main()
    minutes = (time.monotonic() - started) / 60
    print(f"{page.RECORD.relative_to(ROOT)} and {page.PAGE.relative_to(ROOT)} are written, after {minutes:.0f} minutes")
    return 0


def side_by_side(place: Place) -> dict[str, tuple[dict[str, float], list[str]]]:
    """Of each method what `trained` gives. What ends one, or a Ctrl-C, ends both; said again it goes on."""
    with ThreadPoolExecutor(len(METHODS)) as pool:
        tasks = {method: pool.submit(trained, place, method, full=True) for method in METHODS}
        try:
            ended, _ = wait(tasks.values(), return_when=FIRST_EXCEPTION)
            for task in ended:
                task.result()
        except BaseException:
            place.left.set()
            raise
    return {method: task.result() for method, task in tasks.items()}


def pocket() -> Pocket | None:
    """None: no Slurm can run here; then nothing interrupts the runs, and it is said."""
    try:
        return up(nodes=4, gpus=4)
    except PocketError as error:
        print(f"no pocket cluster: {error}: the runs are trained in local mode, without an interruption", flush=True)
        return None


class Place:
    """Where the runs are trained."""

    def __init__(self, pocket: Pocket | None) -> None:
        self.pocket = pocket
        self.left = Event()
        """Nobody watches any more."""
        self.environment = {**os.environ, **(pocket.env() if pocket else {})}

    def python(self, module: str, *words: str) -> str:
        """What it prints. Its messages are shown."""
        return self._run([sys.executable, "-m", module, *words])

    def launch(self, *words: str) -> str:
        return self._run([sys.executable, "launch.py", *words])

    def _run(self, argv: Sequence[str]) -> str:
        print(f"$ python {' '.join(argv[1:])}\n", end="", flush=True)  # in one piece: two may run side by side
        done = subprocess.run(argv, cwd=ROOT, env=self.environment, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise SystemExit(f"outlast: {' '.join(argv[1:])}: exit code {done.returncode}\n{done.stdout}")
        return done.stdout

    def train(self, name: str, recipe: str, *words: str, preempt: bool = False) -> None:
        """To its end; what is done is left, what was cut goes on."""
        run = RunDir(ROOT / "runs" / name)
        if run.done:
            return
        queued = set(self.pocket.jobs()) if self.pocket else set()
        if not run.path.exists():
            layout = ["--partition", "preempt"] if self.pocket else ["--cluster", "local"]
            self.launch("--name", name, *layout, str(HERE / recipe), *words)
        elif not queued & {record["job"] for record in run.jobs()}:
            self.launch("resume", name)
        self._watch(run, preempt)

    def _watch(self, run: RunDir, preempt: bool) -> None:
        size, last = -1, time.monotonic()
        while not run.over:
            if preempt and self.pocket and steps(run) >= STEPS_BEFORE_PREEMPTION:
                take_nodes(self.pocket)
                preempt = False
            now = run.events.stat().st_size if run.events.exists() else 0
            if now != size:
                size, last = now, time.monotonic()
            self._go_on_watching(run, last)
        if not run.done:
            raise SystemExit(f"outlast: {run.name} did not finish: launch.py status {run.name}")
        while not (causes := [attempt["cause"] for attempt in run.attempts()]) or causes[-1] != "done":
            self._go_on_watching(run, last)  # its supervisor writes that after DONE
        print(f"  {run.name}: {steps(run)} steps in {len(causes)} attempts: {', '.join(causes)}", flush=True)

    def _go_on_watching(self, run: RunDir, last: float) -> None:
        if time.monotonic() - last > NO_SIGN:
            raise SystemExit(f"outlast: no sign of {run.name} for {NO_SIGN / 60:.0f} min: launch.py logs {run.name}")
        if self.left.wait(1):
            raise SystemExit(f"outlast: {run.name} goes on unwatched")


def steps(run: RunDir) -> int:
    return max((line["step"] for line in read_lines(run.events) if line.get("event") == "step"), default=0)


def trained(place: Place, method: str, full: bool) -> tuple[dict[str, float], list[str]]:
    """F1 on the development set by learning rate, where it was asked for, and the runs, one of each seed at the best
    rate, with their answers to the test set."""
    base, layout = f"regulator-{method}", ("--gpus", "1") if full else ()
    computed = f"train.precision={precision()}"
    rates, overrides, names = {}, [computed], []
    for rate in RATES[method] if full else ():
        name, given = f"{base}-lr_{rate}", f"optim.lr={rate}"
        place.train(name, f"{method}.yaml", *layout, computed, given)
        place.launch("evaluate", name, "--data", str(DATA / "dev.jsonl"))
        rates[rate] = float(scores(name, "dev")["scores"]["f1_micro"]["value"])
    if rates:
        best = max(rates, key=lambda rate: rates[rate])
        base, overrides = f"{base}-lr_{best}", [computed, f"optim.lr={best}"]
    seeds = SEEDS if full else SEEDS[:1]
    for seed in seeds:
        name, own = (base, []) if seed == seeds[0] else (f"{base}-seed_{seed}", [f"train.seed={seed}"])
        place.train(name, f"{method}.yaml", *layout, *overrides, *own, preempt=seed == seeds[-1])
        place.launch("evaluate", name, "--data", str(DATA / "test.jsonl"))
        names.append(name)
    return rates, names


def precision() -> str:
    """The base's: all runs of a case compute in one."""
    return str(read_yaml(ROOT / "runs" / BASE / "config.yaml")["train"]["precision"])


def scores(name: str, data: str) -> dict[str, Any]:
    return dict(json.loads((ROOT / "runs" / name / "evaluation" / data / "scores.json").read_text()))


def record(place: Place, runs: Mapping[str, Sequence[str]], rates: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """All that the page says: of each seed's two runs what compare found."""
    compared = [
        json.loads(place.launch("compare", *names, "--data", "test", "--json"))
        for names in zip(*(runs[method] for method in METHODS), strict=True)
    ]
    base, first = RunDir(ROOT / "runs" / BASE), scores(runs["full"][0], "test")
    every = {name: RunDir(ROOT / "runs" / name) for names in runs.values() for name in names}
    return {
        "date": time.strftime("%Y-%m-%d"),
        "shape": read_yaml(HERE / "base.yaml")["model"]["config"],
        "base": {"steps": steps(base), "losses": curve(base)},
        "precision": precision(),
        "rates": rates,
        "seeds": compared,
        "groups": {name: scores(name, "test")["by_group"] for name in every},
        "baselines": first["baselines"],
        "references": first["references"],
        "nearest": first["nearest"],
        "common": {key: len(values) for key, values in leaks.shared(leaks.splits(DATA)).items()},
        "causes": {name: [attempt["cause"] for attempt in run.attempts()] for name, run in every.items()},
        "curves": {name: curve(run) for name, run in every.items()},
    }


def curve(run: RunDir) -> list[dict[str, Any]]:
    """Held-out losses as training went on."""
    told = [line for line in read_lines(run.events) if line.get("event") == "evaluation"]
    return [{"step": line["step"], **(line.get("losses") or {"general": line["loss"]})} for line in told]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
