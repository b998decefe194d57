"""The report's sentences: how the run stands, why it stopped, what it cost, and a paragraph for an application."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass

import numpy as np

from timeline import EVALUATION, LOST, SAVES, START, STEPS
from trainer.report.goodput import Split
from trainer.report.run import RUNNING, Run

CAUSES = {
    "done": "done",
    "timeout": "time limit",
    "preemption": "preempted",
    "node_failure": "a node was lost",
    "requeued": "requeued",
    "signal": "a signal",
    "crash": "crash",
    "oom": "out of memory",
    "hang": "hang",
    "stop": "stopped by its user",
    "cancel": "cancelled",
    "budget": "a limit of its user",
    "fenced": "another attempt took over",
    "config": "a mistake in the settings",
    "no progress": "no progress",
    RUNNING: "no end yet",
}


def span(seconds: float) -> str:
    """4.2 s, 12 min 5 s, 3 h 20 min, 2 d 4 h."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    parts = []
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        count, seconds = divmod(round(seconds), size)
        parts += [f"{count:.0f} {unit}"] if count else []
    return " ".join(parts[:2])


def when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


@dataclass(frozen=True)
class Standing:
    """How a run stands, in words."""

    tone: str
    """good, busy, or bad."""
    word: str
    why: str
    next: str
    """What its user may do."""


def standing(run: Run) -> Standing:
    newest, again = run.attempts[-1], f"launch.py resume {run.name}"
    if run.done is not None:
        exported = "; the model stands in export/" if (run.path / "export").is_dir() else ""
        on_the_way = f"; on the way: {interruptions(run)}" if len(run.attempts) > 1 else ""
        return Standing("good", "done", f"every step is done{exported}{on_the_way}", "")
    if run.cancelled is not None:
        cause, reason = str(run.cancelled.get("cause", "cancel")), str(run.cancelled.get("reason", ""))
        tone = "busy" if cause in ("stop", "cancel", "budget") else "bad"
        return Standing(tone, "ended", f"{CAUSES.get(cause, cause)}{f': {reason}' if reason else ''}", again)
    if newest.cause == RUNNING:
        ago = f"last word {span(run.now - newest.end)} before this report"
        if run.silent:
            return Standing(
                "bad", "silent", f"attempt {newest.number} has no end; {ago}", f"launch.py status {run.name}"
            )
        return Standing("busy", "running", f"attempt {newest.number}; {ago}", "")
    reason = f": {newest.reason}" if newest.reason else ""
    why = f"attempt {newest.number} ended by {CAUSES.get(newest.cause, newest.cause)}{reason}"
    return Standing("busy", "between attempts", why, f"launch.py status {run.name}")


def progress(run: Run) -> str:
    of = f" of {run.total:,}" if run.total else ""
    share = f" ({run.step / run.total:.0%})" if run.total and run.step < run.total else ""
    return f"step {run.step:,}{of}{share}"


def device_hours(run: Run, where: Split) -> float:
    """Hours of all GPUs that the run held; of ranks where it had none."""
    held = ((spell, spell.attempt) for spell in where.spells if spell.attempt is not None)
    seconds = sum((spell.end - spell.start) * attempt.ranks for spell, attempt in held)
    restarts = sum(float(spell.parts[START]) for spell in where.spells if spell.attempt is None)
    return (seconds + restarts * run.attempts[-1].ranks) / 3600


def hours_unit(run: Run) -> str:
    return "GPU-hours" if run.on_gpu else "rank-hours on CPUs"


def interruptions(run: Run) -> str:
    """3 time limits and the like, of all attempts but the last."""
    counts = Counter(CAUSES.get(attempt.cause, attempt.cause) for attempt in run.attempts[:-1])
    return ", ".join(f"{count} x {cause}" for cause, count in counts.most_common()) or "none"


def efficiency(run: Run, where: Split) -> str:
    """For the renewal of an allocation."""
    newest, parts, kept = run.attempts[-1], where.parts, run.history.kept()
    shape = f"{newest.ranks} {'GPUs' if run.on_gpu else 'CPU ranks'} on {newest.nodes} {_plural('node', newest.nodes)}"
    device = f" ({newest.device})" if run.on_gpu else ""
    text = [
        f"The run {run.name} did {run.step:,} optimizer steps on {shape}{device} from {when(where.spells[0].start)} to "
        f"{when(where.spells[-1].end)}.",
        f"It used {device_hours(run, where):,.3g} {hours_unit(run)} in {len(run.attempts)} "
        f"{_plural('attempt', len(run.attempts))} (interruptions: {interruptions(run)}).",
    ]
    if where.allocated and kept.any():
        share = [float(part) / where.allocated for part in parts]
        text.append(
            f"Of the allocated time {share[STEPS]:.1%} went into steps that count, {share[EVALUATION]:.1%} into "
            f"evaluation, {share[SAVES]:.1%} into waiting for checkpoints, {share[START]:.1%} into starts and "
            f"{share[LOST]:.1%} into work that an interruption lost ({run.done_again:,} steps were done again)."
        )
        speed = float(np.nanmedian(run.history.numbers("tokens_per_second")[kept]))
        mfu = run.history.numbers("mfu")[kept]
        reached = "" if np.isnan(mfu).all() else f", {np.nanmedian(mfu):.1%} of the GPUs' peak (MFU)"
        if np.isfinite(speed):
            text.append(f"The median step trained on {speed:,.0f} tokens a second{reached}.")
    return " ".join(text)


def _plural(word: str, count: int) -> str:
    return word if count == 1 else f"{word}s"
