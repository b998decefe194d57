"""`python -m trainer.checkpoint list|show|verify|prune DIR`: what a run has saved. It takes no GPU, and no torch."""

from __future__ import annotations

import argparse
import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from msgspec.structs import replace

from durable import fsync_path
from settings import ConfigError, convert, read_yaml
from trainer.checkpoint import CheckpointBroken, Point, committed, folder_name
from trainer.checkpoint.format import Manifest, read_manifest
from trainer.checkpoint.lineage import checkpoint_after, checkpoints_in_line
from trainer.checkpoint.retention import losses, put_aside, staying
from trainer.checkpoint.verify import problems
from trainer.schema import Checkpoint

CONFIG_ERROR = 78
_LEFT_BEHIND = "left behind: a later attempt went on from an earlier step"


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
        ("list", list_all, "the run's checkpoints, newest first, and why each of them stays"),
        ("show", show, "what the newest one holds, or that at --step"),
        ("verify", verify, "read every bit; exit 1 names file, block and tensor of each that is wrong"),
        ("prune", prune, "delete what the run's own config lets go of, or these words; the newest that verify stay"),
    ):
        verb = verbs.add_parser(name, help=what, description=what, allow_abbrev=False)
        verb.add_argument("dir", type=Path, metavar="DIR", help="a run's folder, or one checkpoint's")
        verb.set_defaults(command=command)
        if name in ("show", "verify"):
            verb.add_argument("--step", type=int, help="of the run's checkpoints the one after this step")
        if name == "prune":
            verb.add_argument("--keep", type=_count(1), metavar="N", help="the last N that verify stay")
            verb.add_argument("--keep-every", type=_count(0), metavar="M", help="of every M steps the first one stays")
            verb.add_argument("--keep-best", type=_count(0), metavar="N", help="N with the lowest held-out loss stay")
    return out


def _count(least: int) -> Callable[[str], int]:
    def count(text: str) -> int:
        if (value := int(text)) < least:
            raise argparse.ArgumentTypeError(f"take at least {least}")
        return value

    return count


# --- commands -------------------------------------------------------------------------------------------------


def list_all(args: argparse.Namespace) -> int:
    folder = args.dir / "checkpoints"
    manifests: dict[Point, Manifest] = {}
    broken: dict[Point, CheckpointBroken] = {}
    for point in committed(folder):
        try:
            manifests[point] = read_manifest(folder / folder_name(point))
        except CheckpointBroken as error:
            broken[point] = error
    if not manifests and not broken:
        raise ConfigError("there is no checkpoint")
    line = {point: manifests[point].evaluation_loss for point in checkpoints_in_line(args.dir) if point in manifests}
    stays = staying(line, _settings(args.dir))
    print(f"{'step':>8} {'attempt':>7} {'size':>9} {'loss':>7}  saved by, and why it stays")
    for point in sorted([*manifests, *broken], reverse=True):
        about = f"{point.step:>8} {point.epoch:>7}"
        if point in broken:
            print(f"{about} {'':>9} {'':>7}  BROKEN: {broken[point]}")
            continue
        manifest = manifests[point]
        loss = "" if manifest.evaluation_loss is None else f"{manifest.evaluation_loss:.4f}"
        why = stays.get(point, "goes when the next one is saved") if point in line else _LEFT_BEHIND
        print(f"{about} {_bytes(_size(manifest)):>9} {loss:>7}  {_layout(manifest)}; {why}")
    return 0


def show(args: argparse.Namespace) -> int:
    folder = _one(args)
    manifest = read_manifest(folder)
    elements = sum(math.prod(parameter.shape) for parameter in manifest.parameters.values())
    print(f"{folder.name}: {manifest.step} steps, attempt {manifest.epoch}, by {_layout(manifest)}")
    print(f"  {len(manifest.parameters)} parameters, {elements:,} elements; data {manifest.data[:12]}")
    loss = "" if manifest.evaluation_loss is None else f", held-out loss {manifest.evaluation_loss:.4f}"
    print(f"  {', '.join(f'{key} {value:,}' for key, value in manifest.state.items())}{loss}")
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
    """As a run does it, but that the last ones to stay are read to the bit first."""
    folder, line = args.dir / "checkpoints", checkpoints_in_line(args.dir)
    words = {key: value for key in ("keep", "keep_every", "keep_best") if (value := getattr(args, key)) is not None}
    settings = replace(_settings(args.dir), **words)
    whole: list[Point] = []
    while line and len(whole) < settings.keep:
        point = line.pop(0)
        if (wrong := next(problems(folder / folder_name(point)), None)) is None:
            whole.append(point)
        else:
            print(f"{folder_name(point)} stays, though {wrong}")
    if not whole:
        raise ConfigError("no checkpoint verifies: nothing was deleted")
    stays = staying(dict.fromkeys(whole) | losses(folder, whole + line), settings)
    for point in whole + line:
        if point in stays:
            print(f"{folder_name(point)} stays: {stays[point]}")
        else:
            trash = put_aside(folder, point)
            fsync_path(folder)  # or a crash of the host gives it its name back, and not its files
            shutil.rmtree(trash)
            print(f"{folder_name(point)} is deleted")
    return 0


def _settings(run_dir: Path) -> Checkpoint:
    """What the run's config says of its checkpoints; the defaults where there is none."""
    path = run_dir / "config.yaml"
    section = read_yaml(path).get("checkpoint") if path.exists() else None
    return convert(section or {}, Checkpoint, f"{path}: checkpoint")


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
