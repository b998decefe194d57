"""`make demo`: the main job on a real Slurm, cut by its time limit and preempted, watched until it is done.

    python -m envs.demo

Where no pocket cluster can run (no Slurm packages, no rights) it trains in local mode, cut by a time limit of its own,
and says what that leaves out; with CI=true that is an error.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from durable import read_lines
from envs.pocket import Pocket, PocketError, up
from slurm.rundir import RunDir

ROOT = Path(__file__).parent.parent
RUN = RunDir(ROOT / "runs" / "demo")
WALLTIME = "00:01:00"  # the shortest that Slurm knows
STEPS_BEFORE_PREEMPTION = 15
PATIENCE = 600.0  # seconds without any event of the run

REASONS = {
    "deadline": "the time limit is near",
    "signal SIGTERM": "Slurm's signal: the nodes are wanted",
    "preemption": "the nodes are wanted",
}

console = Console(highlight=False, soft_wrap=True)


def main() -> int:
    started = time.time()
    pocket = cluster()
    move_aside(pocket)
    submit(pocket)
    try:
        watch(pocket)
    except KeyboardInterrupt:
        # In local mode it has heard the Ctrl-C as well: its user's stop.
        goes_on = "goes on without us: launch.py status demo" if pocket else "saves and ends: launch.py resume demo"
        console.print(f"\nthe run {goes_on}")
        return 130
    if not RUN.done:
        console.print(f"[red]the run did not finish:[/] {RUN.cancelled or 'nothing of it is in the queue'}")
        return 1
    return report(pocket, time.time() - started)


# --- before -----------------------------------------------------------------------------------------------


def cluster() -> Pocket | None:
    """The pocket cluster; None: local mode, and why."""
    try:
        pocket = up(nodes=4, gpus=4)
    except PocketError as error:
        if os.environ.get("CI") == "true":
            raise SystemExit(f"outlast: CI=true and no pocket cluster: {error}") from None
        console.print(f"[yellow]no pocket cluster:[/] {error}")
        console.print("the demo runs in local mode; it leaves out Slurm, the queue and the preemption")
        return None
    console.print(
        f"[bold]pocket cluster:[/] {len(pocket.nodes)} nodes x {pocket.gpus} GPUs, a real Slurm on this machine"
    )
    return pocket


def move_aside(pocket: Pocket | None) -> None:
    """An earlier demo keeps its folder under another name, and leaves the queue."""
    if not RUN.path.exists():
        return
    if pocket:
        ids = [record["job"] for record in RUN.jobs()]
        for job in set(ids) & set(pocket.jobs()):
            pocket.ask("scancel", job)
        wait_for(lambda: not set(ids) & set(pocket.jobs()), "the earlier demo to leave the queue")
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(RUN.path.stat().st_mtime))
    aside = RUN.path.with_name(f"demo-{stamp}")
    shutil.move(RUN.path, aside)
    console.print(f"the earlier runs/demo is now runs/{aside.name}")


def submit(pocket: Pocket | None) -> None:
    layout = (
        ["--nodes", "2", "--gpus", "2", "--partition", "preempt"] if pocket else ["--gpus", "2", "--cluster", "local"]
    )
    words = ["launch.py", *layout, "--walltime", WALLTIME, "recipes/demo.yaml"]
    console.print(f"[bold]$ python {' '.join(words)}[/]")
    argv = [sys.executable, *words]
    if pocket:
        subprocess.run(argv, cwd=ROOT, env=environment(pocket), check=True, timeout=300)
    else:  # local mode stays in the foreground: its own lines would mix with ours
        local = subprocess.Popen(argv, cwd=ROOT, env=environment(pocket), stdout=subprocess.DEVNULL)
        wait_for(lambda: RUN.events.exists() or local.poll() is not None, "the run to start")
        if not RUN.events.exists():
            raise SystemExit(f"outlast: the run ended before its first event, with exit code {local.poll()}")


def environment(pocket: Pocket | None) -> dict[str, str]:
    return {**os.environ, **(pocket.env() if pocket else {})}


# --- while it runs ----------------------------------------------------------------------------------------


def watch(pocket: Pocket | None) -> None:
    """Tell what happens in words until the run is over; preempt it once, in its second attempt."""
    urgent: subprocess.CompletedProcess[str] | None = None
    steps_in_attempt = 0
    for event in events():
        tell(event)
        steps_in_attempt = (
            steps_in_attempt + 1 if event["event"] == "step" else 0 if event["event"] == "resume" else steps_in_attempt
        )
        if pocket and urgent is None and event["epoch"] >= 2 and steps_in_attempt >= STEPS_BEFORE_PREEMPTION:
            urgent = preempt(pocket)


def events() -> Iterator[dict[str, Any]]:
    """Events of the run as they come, and the ends of its attempts among them."""
    seen = attempts = 0
    last = time.monotonic()
    while True:
        over = RUN.over  # looked at before reading, so that the last lines are read after the end
        lines, ends = read_lines(RUN.events), RUN.attempts()
        if len(lines) > seen or len(ends) > attempts:
            last = time.monotonic()
        yield from (line for line in lines[seen:] if "event" in line)
        yield from ({"event": "end", "epoch": end["attempt"], **end} for end in ends[attempts:])
        seen, attempts = len(lines), len(ends)
        if over:
            return
        if time.monotonic() - last > PATIENCE:
            raise SystemExit(f"outlast: no sign of the run for {PATIENCE:.0f} s: see {RUN.path}/logs")
        time.sleep(0.3)


def preempt(pocket: Pocket) -> subprocess.CompletedProcess[str]:
    """An urgent job that wants every node: Slurm takes them from the demo."""
    console.print("[yellow]an urgent job of another user wants all nodes[/]")
    argv = [
        "sbatch",
        "--partition=urgent",
        f"--nodes={len(pocket.nodes)}",
        "--exclusive",
        "--output=/dev/null",
        "--wrap=sleep 3",
    ]
    return subprocess.run(argv, env=environment(pocket), check=True, capture_output=True, text=True, timeout=30)


def tell(event: dict[str, Any]) -> None:
    match event["event"]:
        case "resume":
            where = f"goes on from step {event['step']} ({event['from']})" if event.get("from") else "starts"
            console.print(f"[bold]attempt {event['epoch']}[/] {where}")
        case "step" if event["step"] % 10 == 0:
            console.print(f"  step {event['step']:>4}  loss {event['loss']:.3f}  {event['seconds'] * 1000:.0f} ms")
        case "evaluation":
            console.print(f"  held-out loss {event['loss']:.3f} after step {event['step']}")
        case "stop":
            why = REASONS.get(event["reason"], event["reason"])
            console.print(f"  [yellow]all ranks save and leave after step {event['step']}: {why}[/]")
        case "end":
            console.print(f"[bold]attempt {event['epoch']}[/] ended: {event['cause']}")


def wait_for(condition: Any, what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            raise SystemExit(f"outlast: waited {PATIENCE:.0f} s for {what}")
        time.sleep(0.2)


# --- after ------------------------------------------------------------------------------------------------


def report(pocket: Pocket | None, seconds: float) -> int:
    wait_for(lambda: RUN.attempts() and RUN.attempts()[-1]["cause"] == "done", "the last attempt's record")
    console.print(attempts_table())
    audit = subprocess.run(
        [sys.executable, "-m", "trainer.audit", str(RUN.path)], cwd=ROOT, text=True, capture_output=True
    )
    console.print(f"[bold]samples:[/] {(audit.stdout + audit.stderr).strip()}", markup=True)
    lost, training = seconds_lost()
    console.print(
        f"[bold]time:[/] {training:.0f} s of steps, {lost:.0f} s lost to {len(RUN.attempts()) - 1} restarts, "
        f"{seconds:.0f} s in all; {os.path.relpath(RUN.path / 'report.html')} has the rest"
    )
    prompt = "Return the"
    argv = [sys.executable, "-m", "trainer.sample", str(RUN.path / "export"), prompt]
    text = subprocess.run(argv, cwd=ROOT, text=True, capture_output=True, timeout=120)
    console.print("[bold]it writes:[/]", escape(text.stdout.strip() or text.stderr.strip()))
    causes = [record["cause"] for record in RUN.attempts()]
    expected = {"timeout", "preemption", "done"} if pocket else {"timeout", "done"}
    missing = expected - set(causes)
    if missing:
        console.print(f"[red]the demo did not show: {', '.join(sorted(missing))}[/]")
    return 1 if missing or audit.returncode or text.returncode else 0


def attempts_table() -> Table:
    table = Table(title="attempts", title_justify="left")
    for name in ("attempt", "cause", "steps", "loss", "seconds"):
        table.add_column(name, justify="left" if name == "cause" else "right")
    losses = {event["step"]: event["loss"] for event in read_lines(RUN.events) if event.get("event") == "step"}
    for record in RUN.attempts():
        last = record["committed_step"]
        loss = f"{losses[last]:.3f}" if last in losses else "-"
        span = f"{record['end'] - record['start']:.0f}"
        table.add_row(str(record["attempt"]), record["cause"], f"{record['first_step']} to {last}", loss, span)
    return table


def seconds_lost() -> tuple[float, float]:
    """Seconds between the last step of an attempt and the first of the next, and seconds of steps."""
    steps = [event for event in read_lines(RUN.events) if event.get("event") == "step"]
    training = sum(event["seconds"] for event in steps)
    lost = sum(
        b["time"] - b["seconds"] - a["time"] for a, b in zip(steps, steps[1:], strict=False) if a["epoch"] != b["epoch"]
    )
    return lost, training


if __name__ == "__main__":
    sys.exit(main())
