"""`make bench`: every benchmark beside its peers, interleaved in one run, since the machines are noisy."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks import agreement, command_line, data, loader, machine, nodelist
from benchmarks.backlog import measure as backlog
from benchmarks.checkpoint import measure as checkpoint
from benchmarks.forgetting import measure as forgetting
from benchmarks.goodput import measure as goodput
from benchmarks.memory import measure as memory
from benchmarks.plan import hours
from benchmarks.plan import measure as plan
from benchmarks.processes import Unable
from benchmarks.rows import OPEN, Row, table, verdict
from benchmarks.step import measure as step
from benchmarks.stops import measure as stops
from durable import write_atomic

RESULTS = Path(__file__).parent / "results"
CONFIG_ERROR = 78
LEGEND = """\
Commands run in turn and figures are medians, so a ratio holds on a loaded machine where a
time does not. ratio: how many times better than the peer; limit: what nothing of the kind can beat on this machine."""

BENCHMARKS: dict[str, Callable[[bool], list[Row]]] = {
    "command_line": command_line.measure,
    "nodelist": nodelist.measure,
    "agreement": agreement.measure,
    "loader": loader.measure,
    "memory": memory.measure,
    "plan": plan.measure,
    "hours": hours.measure,
    "data": data.measure,
    "step": step.measure,
    "forgetting": forgetting.measure,
    "backlog": backlog.measure,
    "stops": stops.measure,
    "goodput": goodput.measure,
    "checkpoint": checkpoint.measure,
}


def main(argv: list[str], results: Path = RESULTS) -> int:
    args = parser().parse_args(argv)
    if unknown := [name for name in args.only if name not in BENCHMARKS]:
        known = ", ".join(BENCHMARKS)
        print(f"benchmarks: --only {unknown[0]}: there is no such benchmark; there are: {known}", file=sys.stderr)
        return CONFIG_ERROR
    file = results / f"{time.strftime('%Y-%m-%d')}.json"
    record = json.loads(file.read_text()) if file.exists() else {}
    for name in args.only or BENCHMARKS:
        if not (args.keep and stands(record.get(name), args.quick)):
            try:
                record[name] = run(name, args.quick)
            except Unable as error:
                print(f"benchmarks: {error}", file=sys.stderr)
                return 1
            write(record, file)  # after each, so that a run that was cut goes on with --keep
        print(section(name, record[name]))
    print(f"written to {file} and {file.with_suffix('.md').name}")
    return 0


def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__, allow_abbrev=False)
    out.add_argument("--only", action="append", default=[], metavar="NAME", help=f"of: {', '.join(BENCHMARKS)}")
    out.add_argument("--quick", action="store_true", help="fewer rounds")
    out.add_argument("--keep", action="store_true", help="do not repeat what stands from today with the same versions")
    return out


def stands(block: dict[str, Any] | None, quick: bool) -> bool:
    """A figure of today for these very versions; changes that are not committed have no version."""
    if block is None or block["versions"] != machine.versions() or "+changes" in block["versions"]["outlast"]:
        return False
    return quick or not block["quick"]


def run(name: str, quick: bool) -> dict[str, Any]:
    print(f"{name} ...", flush=True)
    here = machine.describe()
    began = time.monotonic()
    rows = BENCHMARKS[name](quick)
    return {
        "quick": quick,
        "seconds": round(time.monotonic() - began),
        "load_after": machine.load(),
        "machine": here,
        "versions": machine.versions(),  # now that the peers are installed
        "rows": [tidy(row) for row in rows],
    }


def tidy(row: Row) -> dict[str, Any]:
    """As it is kept: a cause only where one is asked for, no digits that are noise."""
    kept = asdict(row if verdict(row) in OPEN else replace(row, cause=""))
    return {key: round(value, 3) if isinstance(value, float) else value for key, value in kept.items()}


def write(record: dict[str, Any], file: Path) -> None:
    file.parent.mkdir(exist_ok=True)
    write_atomic(file, json.dumps(record, indent=1) + "\n")
    sections = "".join(section(name, block) for name, block in record.items() if name in BENCHMARKS)
    write_atomic(file.with_suffix(".md"), f"# Benchmarks of {file.stem}\n\n{LEGEND}\n{sections}")


def section(name: str, block: dict[str, Any]) -> str:
    """One benchmark: where and when, the table, what is open."""
    here, about = block["machine"], sys.modules[BENCHMARKS[name].__module__].__doc__
    return f"""
## {name}

{about}

- {here["cpu"]}, {here["cores"]} cores, {here["memory_gb"]} GB; load {here["load"]} before, {block["load_after"]} after
- bare Python {here["python_ms"]} ms ({here["python_without_site_ms"]} without site packages), fp32 GEMM \
{here["gemm_fp32_gflop_s"]} GFLOP/s, memcpy {here["memcpy_gb_s"]} GB/s, write and fsync {here["write_fsync_gb_s"]} GB/s
- {", ".join(f"{what} {version}" for what, version in block["versions"].items())}
- {block["seconds"]} s{", quick" if block["quick"] else ""}

{table([Row(**row) for row in block["rows"]])}"""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
