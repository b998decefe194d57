"""From a recipe and words to the trainer's complete config. Torch-free: a login node does it in milliseconds."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from settings import ConfigError, dump_yaml, merge, override, parse_yaml, read_json, read_yaml, to_plain
from trainer import config, schedule
from trainer.checkpoint.lineage import checkpoint_after
from trainer.config import OWN_CACHE, cache_folder
from trainer.data.files import find
from trainer.engines.deepspeed import zero
from trainer.engines.deepspeed.settings import Deepspeed
from trainer.engines.fsdp import block
from trainer.model import kernels
from trainer.model.model_config import check_unquantized, context_notes
from trainer.model.new_tokens import read_texts
from trainer.plan import batch_layout
from trainer.schema import Rate, TrainConfig


@dataclass(frozen=True)
class Ready:
    """A config that was checked against the layout that it will run on."""

    text: str
    """RUN_DIR/config.yaml: complete, every default written out."""
    batch: str
    """How the ranks share a global batch, as an equation, and what the recipe says that has no meaning or is
    unusual."""
    folders: list[str]
    """Folders that the ranks must see: of the data, the model, the tokenizer, and where links in there lead."""


def read(path: Path) -> dict[str, Any]:
    """A recipe's tree; file names in it count from its own folder."""
    return inlined(config.absolute_paths({"name": path.stem, **read_yaml(path)}, path.parent.resolve()))


def default() -> Path:
    """./recipe.yaml, else the one that is shipped; and says so."""
    here, shipped = Path("recipe.yaml"), Path(__file__).parent.parent / "recipes" / "demo.yaml"
    chosen = Path(os.path.relpath(here if here.exists() else shipped))
    print(f"no recipe given: taking {chosen}", file=sys.stderr)
    return chosen


def spelled(assignment: str) -> str:
    """`train.seed=1` for `seed=1`: a key's last part that one section alone has stands for the whole."""
    key, equals, value = assignment.partition("=")
    return f"{config.full_key(key)}{equals}{value}"


def overridden(tree: dict[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """The tree with `key=value` words laid on it; file names in them count from where they were typed."""
    spoken: dict[str, Any] = {}
    for assignment in assignments:
        spoken = override(spoken, spelled(assignment))
    out = merge(tree, config.absolute_paths(spoken, Path.cwd()))
    _check_heeded(spoken, out)
    return out


def _check_heeded(spoken: dict[str, Any], tree: dict[str, Any]) -> None:
    """Raises ConfigError for a rate that was typed and would change nothing, since every stage has its own."""
    stages, optim = tree.get("stages"), spoken.get("optim")
    if not (isinstance(stages, list) and stages and isinstance(optim, dict)):
        return
    own = [stage.get("optim") or {} if isinstance(stage, dict) else {} for stage in stages]
    for key in Rate.__struct_fields__:
        if key in optim and all(key in each for each in own):
            said = f"optim.{key}={optim[key]}"
            raise ConfigError(f"{said} changes nothing: every stage has its own: stages.{stages[0].get('name')}.{said}")


def checked(tree: dict[str, Any], run_dir: Path, world_size: int, source: str, new: bool = True) -> Ready:
    """The complete config of a run's tree. Raises ConfigError with one line for the first mistake."""
    tree, notes = translated(tree)
    settings = config.resolve(zero.with_batch(tree, world_size) if new else tree, source)
    config.check_files(settings, source)
    settings = settings.with_files(find)
    if settings.lora and settings.lora.quantize:
        check_unquantized(settings.model)
    if settings.train.kernels:
        kernels.check_family(settings.model)
    layout = batch_layout(settings.train, world_size)
    notes += schedule.notes(settings) + context_notes(settings.model, settings.data.seq_len)
    if isinstance(settings.engine, Deepspeed):
        zero.complete(settings, layout, hidden_size=1)  # for its errors
        notes += zero.notes(settings.engine, layout)
    return Ready(dump_yaml(to_plain(settings)), "\n".join([str(layout), *notes]), _folders(settings, run_dir))


def inlined(tree: dict[str, Any]) -> dict[str, Any]:
    """The tree with what another file holds where it names that: another tool's JSON, new tokens."""
    engine, model = tree.get("engine"), tree.get("model")
    if isinstance(engine, dict) and isinstance(engine.get("config"), str):
        tree = {**tree, "engine": {**engine, "config": read_json(Path(engine["config"]))}}
    if isinstance(model, dict) and isinstance(model.get("new_tokens"), str):
        tree = {**tree, "model": {**model, "new_tokens": read_texts(Path(model["new_tokens"]))}}
    return tree


def translated(tree: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The tree with what other files hold, and its engine's settings as others write them read into ours; and what was
    left out of these. Raises ConfigError."""
    tree = inlined(tree)
    engine = tree.get("engine")
    if not isinstance(engine, dict) or engine.get("kind") != "fsdp" or not isinstance(engine.get("config"), dict):
        return tree, []
    settings, notes = block.translated(engine)
    return {**tree, "engine": settings}, notes


def changed(run_dir: Path, assignments: Iterable[str], world_size: int) -> Ready:
    """A run's own config with other layout fields. Raises ConfigError for a field that makes the run what it is."""
    path = run_dir / "config.yaml"
    old = read_yaml(path)
    new, _ = translated(overridden(old, assignments))
    was, now = (config.exact_part(config.resolve(tree, str(path))) for tree in (old, {**new, "name": old["name"]}))
    for key, before, after in config.differences(was, now):
        raise ConfigError(
            f"{key} was {before} and would be {after}: that is another run: start it with --fork {run_dir.name} "
            f"{key}={after}"
        )
    return checked({**new, "name": old["name"]}, run_dir, world_size, str(path), new=False)


def check_same(run_dir: Path, text: str) -> None:
    """Raises ConfigError where a run's own config and this one are of two different runs."""
    path = run_dir / "config.yaml"
    was, now = (
        config.exact_part(config.resolve(tree, str(path))) for tree in (read_yaml(path), parse_yaml(text, str(path)))
    )
    for key, before, after in config.differences(was, now):
        raise ConfigError(
            f"{run_dir.name} is there, and {key} was {before} and would be {after}: take another --name, or the recipe "
            "as it was"
        )


def checkpoint_to_fork(run_dir: Path, step: int | None) -> Path:
    """The newest checkpoint of a run's own line, or that of one step. Raises ConfigError with those that are there."""
    try:
        path = checkpoint_after(run_dir, step)
    except ConfigError as error:
        raise ConfigError(f"--fork {run_dir.name}: {error}") from None
    if not os.access(path, os.R_OK | os.X_OK):
        raise ConfigError(f"--fork {run_dir.name}: {path} cannot be read: ask its owner to share the run (--share)")
    return path


def check_no_fork(tree: dict[str, Any], source: str) -> None:
    """Raises ConfigError: the flag keeps a copy of the checkpoint, and knows from where it counts."""
    if tree.get("fork") is not None:
        raise ConfigError(f"{source}: fork: take --fork RUN@STEP")


def own_cache(runs: Path) -> Path:
    """Where data is prepared beside runs."""
    return runs / OWN_CACHE


def _folders(settings: TrainConfig, run_dir: Path) -> list[str]:
    models = [Path(folder) for folder in (settings.model.path, settings.model.tokenizer) if folder]
    sources = [*settings.data.sources.values(), *settings.to_keep.values()]
    files = [Path(file) for source in sources for file in source.files]
    files += [file for folder in models for file in folder.iterdir()]  # in a Hugging Face cache these are links
    found = {parent for file in files for parent in (file.parent, file.resolve().parent)}
    found |= {*models, cache_folder(settings.data, run_dir), *([Path(settings.fork)] if settings.fork else [])}
    return sorted(map(str, found))


def forked(checkpoint: Path) -> dict[str, Any]:
    """The recipe of a run that starts from another's checkpoint, when its user names none: the other's own."""
    run_dir = checkpoint.parent.parent
    tree = read_yaml(run_dir / "config.yaml")
    layout = {key: value for key, value in read_yaml(run_dir / "job.yaml").items() if key in ("nodes", "gpus_per_node")}
    data = {key: value for key, value in tree["data"].items() if key != "cache"}  # the other's, who may write there
    return {**tree, "name": f"{tree['name']}-fork", "data": data, "job": layout, "fork": None}
