"""`python -m benchmarks.scale`: docs/scale.md, what a run keeps of its time on up to 1,024 nodes: simulated."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from benchmarks.scale.simulate import SAVES, Kind, Month, Place, mean_of, month

PAGE = Path(__file__).parent.parent.parent / "docs" / "scale.md"
NODES = (1, 4, 16, 64, 256, 1024)
SEEDS = range(40)
KINDS: tuple[Kind, ...] = ("waiting", "requeue", "by hand")
EVERY = {"Young's": None, "10 min": 600.0, "1 h": 3600.0, "4 h": 14_400.0}
SPARES = (0, 1, 2, 4)
PARTS = """\
# Past this machine

At the end of this page you know what continuation, the interval between saves and spare nodes are worth on 1 to 1,024
nodes. **All of it is simulated** (`python -m benchmarks.scale`, {months} months each), from rates that others have
published and gaps that were measured on a pocket cluster; nothing here was run on such a machine.

The run is an 8B model with all its weights, 12 bytes a parameter in a checkpoint, {saved:.0f} s until one is durable
(1.9 GB/s, PyTorch's blog of 2025), {stall} s of stall.

## How the next job comes

{by_kind}

*waiting*: the next job stands in the queue already (`--continue-by chain`, `array`); *requeue*: the same job, after the
{requeue:.0f} s that a stock Slurm takes; *by hand*: a new job that waits its turn, {queue:.0f} h in the mean.

## How often to save

{by_every}

Share of what is allocated. Young's interval is what `checkpoint.every=auto` comes to when it has seen interruptions.

## Spare nodes

{by_spares}

Share of what is allocated (spares are too), then of all time. A spare takes the place of a lost node inside the
allocation. Below some hundred nodes it costs more than it brings; Outlast has none: after a lost node the next job
takes other nodes.

## Assumed

| | |
|---|---|
| a node fails | {failures:.1f} times in 1,000 days (Meta's RSC-1, 2410.21680) |
| it takes its job along | {lost:.0%} of the failures: assumed |
| a failure hangs | {hangs:.0%} (ByteRobust); it is seen after {notice:.0f} s |
| a job is preempted | {preemptions:.1f} times a day, with notice enough to save |
| time limit | {walltime:.0f} h |
| a start | {start:.0f} s: imports from Lustre (OLCF) and the load |
| a free node in place of a lost one | {free:.0f} min in the mean: assumed |
"""


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def table(title: str, columns: list[str], rows: dict[str, list[str]]) -> str:
    lines = [f"| {title} | {' | '.join(columns)} |", f"|{'---|' * (len(columns) + 1)}"]
    return "\n".join([*lines, *(f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items())])


@cache
def months(nodes: int, kind: Kind, every: float | None, spares: int) -> list[Month]:
    return [month(nodes, kind, every, spares, seed=seed) for seed in SEEDS]


def page() -> str:
    place, nodes = Place(), [f"{count:,}" for count in NODES]
    plain = {count: months(count, "waiting", None, 0) for count in NODES}
    apart = [f"{30 * 24 / (sum(one.interruptions for one in plain[count]) / len(SEEDS)):.3g} h" for count in NODES]
    by_kind = {"hours between two starts": apart}
    for kind in KINDS:
        paces = [mean_of("pace", months(count, kind, None, 0)) for count in NODES]
        by_kind[f"{kind}: share of all time"] = list(map(percent, paces))
    by_kind["share of what is allocated"] = [percent(mean_of("goodput", plain[count])) for count in NODES]
    by_every = {
        name: [percent(mean_of("goodput", months(count, "waiting", every, 0))) for count in NODES]
        for name, every in EVERY.items()
    }
    by_spares = {
        str(spares or "none"): [
            f"{percent(mean_of('goodput', found))}, {percent(mean_of('pace', found))}"
            for found in (months(count, "waiting", None, spares) for count in NODES)
        ]
        for spares in SPARES
    }
    return PARTS.format(
        months=len(SEEDS),
        saved=SAVES.whole,
        stall=SAVES.stall,
        by_kind=table("nodes", nodes, by_kind),
        by_every=table("nodes", nodes, by_every),
        by_spares=table("nodes", nodes, by_spares),
        requeue=place.requeue,
        queue=place.queue / 3600,
        failures=1000 * place.failures,
        lost=place.lost_nodes,
        hangs=place.hangs,
        notice=place.notice,
        preemptions=place.preemptions,
        walltime=place.walltime / 3600,
        start=place.start,
        free=place.free_node / 60,
    )


if __name__ == "__main__":
    PAGE.write_text(page())
