"""`python -m trainer.checkpoint list|show|verify|prune DIR`: what a run has saved. It takes no GPU, and no torch."""

from __future__ import annotations

import argparse
import math
import secrets
import shutil
import sys
from pathlib import Path

from durable import fsync_path
from settings import ConfigError
from trainer.checkpoint import CheckpointBroken, committed, folder_name
from trainer.checkpoint.format import Manifest, read_manifest
from trainer.checkpoint.lineage import checkpoint_after, checkpoints_in_line
from trainer.checkpoint.verify import problems

CONFIG_ERROR = 78


def main(argv: list[str]) -> int:
    args = _parser().parse_args(argv)
    try:
        return int(args.command(args))
    except (ConfigError, CheckpointBroken) as error:
        print(f"outlast: {args.dir}: {error}", file=sys.stderr)
        return CONFIG_ERROR


def _parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(prog="python -m trainer.checkpoint", description=__doc__, allow_abbrev=False)
    verbs = out.add_subparsers(required=True, metavar="list|show|verify|prune")
    for name, command, what in (
        ("list", list_all, "the run's checkpoints, newest first, and which of them a resume looks at"),
        ("show", show, "what the newest one holds, or that at --step"),
        ("verify", verify, "read every bit; exit 1 names file, block and tensor of each that is wrong"),
        ("prune", prune, "delete all but the newest that verify"),
    ):
        verb = verbs.add_parser(name, help=what, description=what, allow_abbrev=False)
        verb.add_argument("dir", type=Path, metavar="DIR", help="a run's folder, or one checkpoint's")
        verb.set_defaults(command=command)
        if name in ("show", "verify"):
            verb.add_argument("--step", type=int, help="of the run's checkpoints the one after this step")
        if name == "prune":
            verb.add_argument("--keep", type=_count, default=2, metavar="N", help="how many stay (default: 2)")
    return out


def _count(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError("the newest one always stays: take at least 1")
    return value


# --- commands -------------------------------------------------------------------------------------------------


def list_all(args: argparse.Namespace) -> int:
    found = committed(args.dir / "checkpoints")
    line = set(checkpoints_in_line(args.dir))
    if not found:
        raise ConfigError("there is no checkpoint")
    print(f"{'step':>8} {'attempt':>7} {'size':>9}  saved by")
    for point in found:
        folder = args.dir / "checkpoints" / folder_name(point)
        try:
            manifest = read_manifest(folder)
        except CheckpointBroken as error:
            print(f"{point.step:>8} {point.epoch:>7} {'':>9}  BROKEN: {error}")
            continue
        branch = "" if point in line else "  (left behind: a later attempt went on from an earlier step)"
        print(f"{point.step:>8} {point.epoch:>7} {_bytes(_size(manifest)):>9}  {_layout(manifest)}{branch}")
    return 0


def show(args: argparse.Namespace) -> int:
    folder = _one(args)
    manifest = read_manifest(folder)
    elements = sum(math.prod(parameter.shape) for parameter in manifest.parameters.values())
    print(f"{folder.name}: {manifest.step} steps, attempt {manifest.epoch}, by {_layout(manifest)}")
    print(f"  {len(manifest.parameters)} parameters, {elements:,} elements; data {manifest.data[:12]}")
    print(f"  {', '.join(f'{key} {value:,}' for key, value in manifest.state.items())}")
    print(f"  {len(manifest.files)} files, {_bytes(_size(manifest))}, a hash for each {_bytes(manifest.block)}")
    for name, parameter in manifest.parameters.items():
        narrow = f"  bf16: {', '.join(parameter.bf16)}" if parameter.bf16 else ""
        print(f"  {name} {parameter.shape}{narrow}")
    return 0


def verify(args: argparse.Namespace) -> int:
    folder = _one(args)
    wrong = 0
    for problem in problems(folder):
        wrong += 1
        print(f"{folder.name}/{problem}")
    if not wrong:
        manifest = read_manifest(folder)
        print(f"{folder.name} is whole: {_bytes(_size(manifest))} in {len(manifest.files)} files")
    return 1 if wrong else 0


def prune(args: argparse.Namespace) -> int:
    """By a rename first, as a run does it: a kill in between leaves nothing that looks like a checkpoint."""
    folder = args.dir / "checkpoints"
    kept = 0
    for point in checkpoints_in_line(args.dir):
        path = folder / folder_name(point)
        if kept < args.keep:
            wrong = next(problems(path), None)
            kept += wrong is None
            print(f"{path.name} stays{f', though {wrong}' if wrong else ''}")
            continue
        trash = folder / f".trash-{path.name}-{secrets.token_hex(4)}"
        path.rename(trash)
        fsync_path(folder)
        shutil.rmtree(trash)
        print(f"{path.name} is deleted")
    if not kept:
        raise ConfigError("no checkpoint verifies: nothing was deleted")
    return 0


# --- in words -------------------------------------------------------------------------------------------------


def _one(args: argparse.Namespace) -> Path:
    """The checkpoint that is meant. Raises ConfigError."""
    if not (args.dir / "checkpoints").is_dir():
        if args.step is not None or not args.dir.is_dir():
            raise ConfigError("this is no run's folder")
        return Path(args.dir)
    return checkpoint_after(args.dir, args.step)


def _layout(manifest: Manifest) -> str:
    return f"{manifest.layout['engine']} on {manifest.layout['world_size']} ranks"


def _size(manifest: Manifest) -> int:
    return sum(file.size for file in manifest.files)


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} TiB"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
