"""`launch.py pocket up | status | down`."""

import argparse
import json
import sys
import time
from dataclasses import asdict

from envs.pocket.cluster import Pocket, Status
from envs.pocket.errors import PocketError
from envs.pocket.home import down
from envs.pocket.life import check_name, find, up
from envs.pocket.roots import roots


def main(argv: list[str]) -> int:
    options = _parser().parse_args(argv)
    try:
        check_name(options.name)
        match options.verb:
            case "up":
                return _up(options)
            case "status":
                return _status(options)
            case _:
                return _down(options)
    except PocketError as error:
        print(f"pocket: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pocket", description="A real Slurm on this one machine.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="up | status | down")
    start = verbs.add_parser("up", help="start it, or take the one that runs")
    start.add_argument("--nodes", type=int, default=4)
    start.add_argument("--gpus", type=int, default=4, help="fake GPUs on each node")
    show = verbs.add_parser("status", help="daemons, nodes and jobs")
    show.add_argument("--json", action="store_true")
    stop = verbs.add_parser("down", help="end it with all its jobs, and remove its folder")
    for verb in (start, show, stop):
        verb.add_argument("--name", default="pocket")
    return parser


def _up(options: argparse.Namespace) -> int:
    began = time.monotonic()
    pocket = up(options.name, options.nodes, options.gpus, say=print)
    took = time.monotonic() - began
    shape = f"{len(pocket.nodes)} nodes x {pocket.gpus} fake GPUs"
    lines = [
        f"{pocket.name} is up: {shape}, in {took:.1f} s",
        "  partitions: batch (default); urgent preempts jobs in preempt and nograce (requeued) and cancel (cancelled)",
        "  launch.py finds it by itself; for plain sbatch and squeue:",
        f"    export SLURM_CONF={pocket.slurm_conf}",
    ]
    if not pocket.layout.namespaces:
        lines.append("  no network namespaces here: all nodes share this machine's name and address")
    print("\n".join(lines))
    return 0


def _status(options: argparse.Namespace) -> int:
    pocket = find(options.name)
    if pocket is None:
        print(json.dumps(None) if options.json else f"{options.name} is not up")
        return 1
    status = pocket.status()
    print(json.dumps(asdict(status), indent=2) if options.json else _text(pocket, status))
    return 0 if status.healthy else 1


def _text(pocket: Pocket, status: Status) -> str:
    daemons = {"munged": status.munged, "slurmctld": status.slurmctld}
    dead = [name for name, runs in daemons.items() if not runs]
    lines = [f"{status.name}: {'dead: ' + ', '.join(dead) if dead else 'up'}, {len(status.jobs)} jobs"]
    for node in status.nodes:
        note = "" if node.slurmd else "  (slurmd is dead)"
        lines.append(f"  {node.name:<8}{node.address:<16}{node.state}{note}")
    lines.append(f"  export SLURM_CONF={pocket.slurm_conf}")
    return "\n".join(lines)


def _down(options: argparse.Namespace) -> int:
    pocket = find(options.name)
    down(pocket.folder if pocket else roots()[0] / options.name)
    print(f"{options.name} is down" if pocket else f"{options.name} was not up")
    return 0
