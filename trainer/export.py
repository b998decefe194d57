"""From a checkpoint of any engine and world size to a Hugging Face folder. It takes no GPU.

`python -m trainer.export RUN_DIR [--step N] [--dtype float32|bf16]` is what launch.py export starts.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers

from durable import as_open_as, copy_private, fsync_path, nonce
from settings import ConfigError, read_json
from trainer import config, exits
from trainer.checkpoint import CheckpointBroken
from trainer.checkpoint.format import name_of
from trainer.checkpoint.lineage import checkpoint_after
from trainer.checkpoint.load import Reader
from trainer.data.encode import end_tokens
from trainer.identity import check_same_base
from trainer.model import new_tokens
from trainer.model.exported import fingerprint, tensors, write
from trainer.model.lora import inject, with_tokens
from trainer.model.model_card import card, provenance
from trainer.model.weights import build
from trainer.schema import TrainConfig
from trainer.shape import Model

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
_TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "chat_template*",
    "vocab*",
    "merges.txt",
    "added_tokens.json",
    "*.model",
)


def export(
    settings: TrainConfig,
    checkpoint: Path,
    target: Path,
    say: Callable[[str], None],
    dtype: torch.dtype | None = None,
    by: str = "run",
) -> str:
    """Write the checkpoint's model, its tokenizer and where they come from to `target`, whole or not at all.

    `dtype`: None: that of the run's passes. `by`: what another writer began is left to it. Returns the tensors'
    sha256. Raises ConfigError, and CheckpointBroken for a wrong bit.
    """
    dtype = dtype or (torch.bfloat16 if settings.train.bf16_passes else torch.float32)
    with _whole_or_not(target, by) as folder, Reader(checkpoint) as reader, ExitStack() as files:
        check_same_base(settings, reader.manifest)
        found = tensors(settings, reader, dtype, files)
        if found is None:
            say("export: this model's tensors cannot be taken one by one: it stands whole in memory for a while")
            model = _whole(settings, reader, dtype)
            model.save_pretrained(folder, max_shard_size="5GB")
            sha256 = fingerprint(dict(model.named_parameters()))
        else:
            model = found[0]
            sha256 = write(folder, found[1])
        elements = sum(parameter.numel() for parameter in model.parameters())
        about = provenance(settings, reader.manifest, dtype, elements, sha256)
        _write_json(folder / "provenance.json", about)
        (folder / "README.md").write_text(card(settings, about), encoding="utf-8")
        _write_configs(model, settings, dtype, folder)
        _write_tokenizer(settings.model, folder)
    return sha256


def _whole(settings: TrainConfig, reader: Reader, dtype: torch.dtype) -> Any:
    """The trained model, in memory."""
    model: Any = build(settings.model, settings.train.seed, torch.float32 if settings.lora else dtype)
    lora = settings.lora and with_tokens(settings.lora, settings.model)
    adapters = inject(model, lora, settings.train.seed) if lora else None
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                reader.parameter(name, parameter.shape)
                values = reader.read(name, "weights", 0, parameter.numel())
                parameter.copy_(torch.from_numpy(values).view_as(parameter))
    if adapters is not None:
        model = adapters.merge_and_unload(safe_merge=True)
    transformers.utils.logging.disable_progress_bar()
    return model.to(dtype)


def _write_configs(model: Any, settings: TrainConfig, dtype: torch.dtype, folder: Path) -> None:
    """config.json, and generation_config.json with the tokens that end what this model writes. Raises ConfigError."""
    model.config.architectures = [type(model).__name__]
    model.config.dtype = name_of(dtype)
    model.config.to_json_file(folder / "config.json", use_diff=True)
    values = model.generation_config.to_diff_dict()
    known = None  # a new model's is its architecture's default, which means nothing to its tokenizer
    if settings.model.path is not None:
        own = Path(settings.model.path) / "generation_config.json"
        values = read_json(own) if own.is_file() else values
        known = values.get("eos_token_id")
    values.pop("_from_model_config", None)  # transformers would make it anew from config.json
    ends = known if isinstance(known, list) else [known] * (known is not None)
    ends += end_tokens(Path(settings.model.tokenizer_folder), settings.result)
    _write_json(folder / "generation_config.json", {**values, "eos_token_id": list(dict.fromkeys(ends))})


def _write_tokenizer(model: Model, folder: Path) -> None:
    if model.new_tokens:
        new_tokens.write(model, folder)
        return
    for pattern in _TOKENIZER_FILES:
        for file in filter(Path.is_file, Path(model.tokenizer_folder).glob(pattern)):
            copy_private(file, folder / file.name)


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


@contextmanager
def _whole_or_not(target: Path, by: str) -> Iterator[Path]:
    """A folder to fill, which takes the target's name and place when all went well, and is gone when it did not."""
    temporary = target.with_name(f".{target.name}-{by}-{nonce()}")
    for leftover in target.parent.glob(f".{target.name}-{by}-*"):  # of an export that was killed
        _remove(leftover)
    try:
        temporary.mkdir()
        yield temporary
        for file in temporary.iterdir():  # DONE is durable, so what it speaks of must be
            fsync_path(file)
        fsync_path(temporary)
        if target.exists():
            target.rename(old := temporary.with_name(f"{temporary.name}.old"))
            _remove(old)
        temporary.rename(target)
        fsync_path(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _remove(folder: Path) -> None:
    """Of a link to other storage the link alone."""
    folder.unlink() if folder.is_symlink() else shutil.rmtree(folder)


# --- by hand ----------------------------------------------------------------------------------------------


def by_hand(run_dir: Path, step: int | None, dtype: str | None) -> Path:
    """Export a checkpoint of a run; beside the run's own export, if it is asked for another step or dtype. Raises
    ConfigError."""
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"--dtype {dtype}: take {' or '.join(DTYPES)}")
    if not (run_dir / "config.yaml").is_file():
        raise ConfigError(f"{run_dir}: there is no config.yaml: this is no run of the trainer")
    checkpoint = checkpoint_after(run_dir, step)
    words = ["export", f"step-{step}" if step is not None else None, dtype]
    target = run_dir / "-".join(filter(None, words))
    try:
        with as_open_as(run_dir):
            export(config.read(run_dir / "config.yaml"), checkpoint, target, print, DTYPES.get(dtype or ""), by="hand")
    except CheckpointBroken as error:
        raise ConfigError(f"{checkpoint}: {error}: take another one: --step N") from None
    return target


def main(argv: list[str]) -> int:
    out = argparse.ArgumentParser(prog="python -m trainer.export", description=__doc__, allow_abbrev=False)
    out.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    out.add_argument("--step", type=int, help="the checkpoint after this step; default: the newest")
    out.add_argument("--dtype", help="float32 or bf16; default: what the run computed in")
    args = out.parse_args(argv)
    try:
        target = by_hand(args.run_dir.resolve(), args.step, args.dtype)
    except ConfigError as error:
        print(f"outlast: {error}", file=sys.stderr)
        return exits.CONFIG
    except OSError as error:
        print(f"outlast: {error}", file=sys.stderr)
        return exits.CRASHED
    except KeyboardInterrupt:
        return 130
    about = json.loads((target / "provenance.json").read_text(encoding="utf-8"))
    weights = about["weights"]
    print(f"{target}: step {about['steps']:,}, {weights['elements']:,} weights in {weights['dtype']}")
    return exits.DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
