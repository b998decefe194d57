"""`launch.py plan`: a plan for people, and for scripts. Torch-free."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from settings import ConfigError
from trainer.checkpoint.interval import duration
from trainer.plan import layouts
from trainer.plan.layouts import Planned
from trainer.plan.report import Counted, Report, instead, made, too_large

GIB = 2**30
_BAR = 30
SHOWN = 6
"""Layouts in a table."""


class Asked(NamedTuple):
    """What is planned, and where."""

    tree: dict[str, Any]
    """A recipe's, or a config.json's."""
    spoken: dict[str, Any]
    """The words of the job."""
    source: str
    """What to call the tree in errors."""
    gpu: str | None
    """The site's, as --gpus-of calls it."""
    counted: Counted | None


def run(read: Callable[[], Asked], job: Mapping[str, Any], args: Namespace) -> int:
    """The verb: 0, or 78 where it does not fit. `job`: flags. Raises ConfigError."""
    if args.calibrate:
        from trainer.plan import measured

        print(measured.calibrate(args.calibrate, Path(args.runs_dir)))
        return 0
    if args.table:
        from trainer.plan import founding

        print(founding.page())
        return 0
    tree, spoken, source, gpu, counted = read()
    job = {**tree.pop("job", {}), **job, **spoken}
    report = made(tree, job, source, args.gpus_of or gpu, args.examples, Path(args.runs_dir), counted)
    print(json.dumps(as_json(report), indent=2)) if args.json else print_report(report, source)
    return 0 if report.now.fits else ConfigError.exit_code


def verdict(report: Report) -> str:
    """One sentence."""
    now = report.now
    if not now.fits:
        return f"{too_large(now)[0].upper()}{too_large(now)[1:]}: {instead(report.nearest)}."
    size, has = now.memory.gpu / GIB, now.device.bytes / GIB
    ranks = now.nodes * now.gpus
    on = "the GPU" if ranks == 1 else f"each of {ranks:,} GPUs"
    text = f"It fits: {size:,.1f} of {has:.1f} GiB on {on} ({now.device.name})"
    return text + (f"; {_hours(now)} for {now.time.steps:,} steps." if report.length else ".")


def _hours(one: Planned) -> str:
    return f"about {duration(one.time.seconds)}, {one.time.gpu_hours:,.1f} GPU-hours"


def print_report(report: Report, source: str) -> None:
    console = Console(highlight=False)
    now = report.now
    style = "bold green" if now.fits else "bold red"
    console.print(Text(verdict(report), style), soft_wrap=True)
    console.print(Text(f"{layouts.parameters(report.model, now.settings)}; {now.layout}", "dim"), soft_wrap=True)
    console.print("", Text(f"Memory of a GPU, at {now.memory.moment}", "bold"), _memory(now), "", sep="\n")
    for name, text in _facts(report):
        console.print(Text.assemble((f"{name:<9}", "bold"), text), soft_wrap=True)
    console.print()
    for part in _layouts(report, source):
        console.print(part, soft_wrap=isinstance(part, Text))


def _memory(one: Planned) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column("")
    table.add_column("", justify="right")
    table.add_column("")
    largest = max(one.memory.gpu, one.device.bytes)
    for name, size in sorted(one.memory.device.items(), key=lambda part: -part[1]):
        table.add_row(name, _size(size), Text("█" * max(1, round(_BAR * size / largest)), "cyan"))
    table.add_section()
    left = "left" if one.fits else "too much"
    table.add_row("in all", _size(one.memory.gpu), f"{_size(abs(one.free))} {left}", style="bold")
    return table


def _facts(report: Report) -> Iterator[tuple[str, str]]:
    now, time, saved = report.now, report.now.time, report.saving
    host = ", ".join(f"{name} {_size(size)}" for name, size in now.memory.host.items())
    few = f"; job.mem={report.mem} is {_size(report.short)} too little" if report.short else ""
    yield "host", f"{_size(now.memory.node)} on each node: {host}{few}"
    if now.memory.disk:
        yield "scratch", f"{_size(now.memory.disk)} on each node's own disk"
    slower = f"; offload makes it {time.offload:.1f} times as long" if time.offload > 1 else ""
    yield "step", f"{_seconds(time.step)}, MFU {time.mfu:.1%}{slower} ({time.source})"
    if report.length:
        of = f"{time.tokens / 1e6:,.4g} M tokens in {time.steps:,} steps ({report.length.said})"
        units = f", as the site counts: {report.units}" if report.units else ""
        yield "run", f"{of}: {_hours(now)}, {time.node_hours:,.1f} node-hours{units}"
        jobs = ", ".join(f"{time.attempts(hours * 3600)} of {hours} h" for hours in (4, 24))
        yield "jobs", f"{jobs}, without waiting in the queue"
    else:
        yield "run", "nothing says how long it is: give train.steps, or --examples 6800x2048"
    every = f"every {saved.every:,} steps ({duration(saved.every * time.step)})"
    yield "saves", f"{_size(saved.bytes)} {every}; {_size(saved.disk)} of disk at most"
    for line in report.assumed:
        yield "assumed", line


def _size(size: float) -> str:
    return f"{size / GIB:,.1f} GiB" if abs(size) >= GIB / 10 else f"{size / 2**20:,.1f} MiB"


def _seconds(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds < 120 else duration(seconds)


def _layouts(report: Report, source: str) -> list[RenderableType]:
    now, out = report.now, []
    title = f"Layouts that fit on {now.nodes} x {now.gpus} {now.device.name}, the fastest first"
    for heading, rows in (
        (title, _distinct(report.better)),
        ("The fewest GPUs", [report.smallest] if report.smallest else []),
        ("The best on other GPUs", report.others),
    ):
        parts = [Text(heading, "bold"), _table(rows), *_lines(rows, whole=heading != title), Text()]
        out += parts if rows else []
    if not now.fits:
        nearest = report.nearest
        line = f"launch.py plan {source} {' '.join(nearest.words)}" if nearest else instead(None)
        out.append(Text(line, "bold"))
    return out


def _distinct(found: list[Planned]) -> list[Planned]:
    """Of each engine and mode the best micro batch."""
    seen: dict[Any, Planned] = {}
    for one in found:
        seen.setdefault((str(one.settings.engine), str(one.settings.train.gradient_checkpointing)), one)
    return list(seen.values())[:SHOWN]


def _table(rows: list[Planned]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("", "GPUs", "a GPU", "left", "step", "run", "GPU-hours", "MFU"):
        table.add_column(name, justify="left" if name == "GPUs" else "right")
    for number, one in enumerate(rows, 1):
        table.add_row(
            *(str(number), f"{one.nodes} x {one.gpus} {one.device.name}", _size(one.memory.gpu), _size(one.free)),
            *(_seconds(one.time.step), duration(one.time.seconds), f"{one.time.gpu_hours:,.3g}", f"{one.time.mfu:.0%}"),
        )
    return table


def _lines(rows: list[Planned], whole: bool) -> list[RenderableType]:
    """What is typed for each: apart from the table, so that nothing breaks it."""
    typed = (one.words if whole else one.keys for one in rows)
    return [Text(f" {number}  {' '.join(words)}", "cyan") for number, words in enumerate(typed, 1)]


# --- for scripts ------------------------------------------------------------------------------------------


def as_json(report: Report) -> dict[str, Any]:
    """Bytes and seconds."""
    saved = report.saving
    return {
        "verdict": verdict(report),
        "fits": report.now.fits,
        "model": {
            "model_type": report.model.model_type,
            "known": report.model.known,
            "parameters": report.model.parameters,
            "active": report.model.active,
            "flops_per_token": report.model.flops(report.now.settings.data.seq_len),
        },
        "plan": _plain(report.now),
        "length": report.length and {"steps": report.length.steps, "from": report.length.said},
        "checkpoint": {
            "bytes": saved.bytes,
            "every_steps": saved.every,
            "stall_seconds": saved.stall,
            "written_seconds": saved.written,
            "disk_bytes": saved.disk,
        },
        "layouts": [_plain(one) for one in _distinct(report.better)],
        "smallest": report.smallest and _plain(report.smallest),
        "others": [_plain(one) for one in report.others],
        "units": report.units,
        "host_short_bytes": report.short,
        "assumed": report.assumed,
    }


def _plain(one: Planned) -> dict[str, Any]:
    time = one.time
    return {
        "fits": one.fits,
        "nodes": one.nodes,
        "gpus_per_node": one.gpus,
        "device": one.device.name,
        "device_bytes": one.device.bytes,
        "gpu_bytes": one.memory.gpu,
        "gpu_parts": one.memory.device,
        "moment": one.memory.moment,
        "host_bytes": one.memory.node,
        "host_parts": one.memory.host,
        "disk_bytes": one.memory.disk,
        "words": one.words,
        "batch": str(one.layout),
        "step_seconds": time.step,
        "seconds": time.seconds,
        "tokens": time.tokens,
        "mfu": time.mfu,
        "mfu_source": time.source,
        "offload_factor": time.offload,
        "gpu_hours": time.gpu_hours,
        "node_hours": time.node_hours,
    }
